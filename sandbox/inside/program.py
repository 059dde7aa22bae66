"""A fork of the zygote becomes the program: limits first, then its text."""

from __future__ import annotations

import ast
import atexit
import contextlib
import linecache
import math
import os
import resource
import site
import sys
import threading
import traceback
from types import ModuleType
from typing import Any, NoReturn

from sandbox.inside import kernel, view

FILE = "main.py"  # in tracebacks; there is no such file
_NUM_OPEN_FILES = 256


def prepare(settings: dict[str, Any]) -> None:
    """What every program finds, done once, in the zygote."""
    packages = view.package_places(settings["packages"])
    sys.path[:] = [*(path for path in sys.path if path != settings["root"]), *packages]
    sys.executable, sys.argv = settings["executable"], [FILE]
    os.environ.clear()
    os.environ |= {
        "PATH": ":".join([*settings["programs"], "/usr/bin", "/bin"]),
        "PYTHONPATH": ":".join(packages),
        **{"HOME": view.WORK, "TMPDIR": view.WORK, "USER": "user", "LANG": "C.UTF-8"},
        **{"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1", "MALLOC_ARENA_MAX": "2"},
        # a thread a core of the machine would be more than the limit on processes allows
        **{"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    }
    for ours in [module for module in sys.modules if module.split(".")[0] == "sandbox"]:
        del sys.modules[ours]  # a program's own module may have that name
    site.setquit()  # exit() and quit(), which Python without `site` does not have
    site.sethelper()


def become(
    request: dict[str, Any], files: list[int], limits: dict[str, Any], fence: bytes
) -> NoReturn:
    """Runs the program that is in the first of `files` (then stdin, stdout, stderr); ends the
    process with its exit code."""
    status = 1
    try:
        text = _read(files[0])
        for number, file in enumerate(files[1:]):
            os.dup2(file, number)
        os.closerange(3, 1 << 16)
        os.setsid()
        os.chdir(view.WORK)
        _limit(request, limits)
        kernel.drop_capabilities()
        kernel.filter_system_calls(fence)
        status = _run(text, request["name"], echo=request["echo"])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _read(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors="surrogatepass")


def _limit(request: dict[str, Any], limits: dict[str, Any]) -> None:
    seconds = math.ceil(request["seconds"])
    hard = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        # the user namespace's other three: warden, zygote and the first of the call
        resource.RLIMIT_NPROC: limits["processes"] + 3,
        resource.RLIMIT_NOFILE: _NUM_OPEN_FILES,
    }
    for what, value in hard.items():
        resource.setrlimit(what, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def _run(text: str, name: str, *, echo: bool) -> int:
    """The exit code. `echo`: the value of a last expression is printed, unless it is None."""
    main = ModuleType(name)
    sys.modules["__main__"] = sys.modules[name] = main
    linecache.cache[FILE] = (len(text), None, text.splitlines(keepends=True), FILE)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    status = 0
    try:
        _execute(text, main, echo=echo)
    except SystemExit as left:
        status = _exit_code(left.code)
    except BaseException as error:
        status = 1
        _show(error)
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]  # waits for its threads
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except Exception as error:  # a file that is full
            status = status or 1
            _show(error)
    return status


def _execute(text: str, main: ModuleType, *, echo: bool) -> None:
    tree = ast.parse(text, FILE)
    last = tree.body.pop() if echo and tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, FILE, "exec"), main.__dict__)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), FILE, "eval"), main.__dict__)
        if value is not None:
            print(repr(value))


def _exit_code(code: object) -> int:
    if code is None or isinstance(code, int):
        return int(code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def _show(error: BaseException) -> None:
    """The traceback, from the program's own first line on."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != FILE:
        frames = frames.tb_next
    with contextlib.suppress(Exception):
        traceback.print_exception(type(error), error, frames)
