"""A warm Python within the walls that forks one program after another, one at a time.

Every program has a pid namespace of its own. Its first process only waits; to kill it kills all
others, and the kernel reaps none of us before they are gone. Nothing that a program sees leads to
the zygote: it has no pid there, and no file of the zygote's is open."""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import time
from typing import Any, NoReturn

from sandbox.inside import kernel, program, view
from sandbox.inside.system_calls import filter_program

KILL = b"kill"  # what the owner says in the middle of a call
_NUM_FILES = 4  # of a request: the program, stdin, stdout, stderr


def live(control: socket.socket, trees: view.Trees, settings: dict[str, Any]) -> NoReturn:
    """The zygote's whole life; and the program's, in a fork of it."""
    try:
        kernel.die_with_parent(signal.SIGKILL)
        machine = os.uname().machine
        # while /proc is there
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        socket.sethostname("sandbox")
        view.enter(trees, machine)
        view.mount_work(settings["limits"]["disk_bytes"])
        kernel.gain_nothing_by_exec()
        program.prepare(settings)
        for module in settings["preload"]:
            importlib.import_module(module)
        fence = filter_program(machine)
        gc.collect()
        gc.freeze()  # a collection in a fork would copy every page of ours
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        said = f"{type(error).__name__}: {error}"[:10_000]
        control.send(json.dumps({"error": said, "errno": number}).encode())
        os._exit(1)
    control.send(json.dumps({"ready": True}).encode())
    while True:
        request, files, _, _ = socket.recv_fds(control, 1 << 16, _NUM_FILES)
        if not request:  # the owner has closed it, or died
            os._exit(0)
        if request == KILL:  # of a call that had ended by itself
            continue
        _call(control, own, json.loads(request), files, settings["limits"], fence, machine)


def _call(
    control: socket.socket,
    own: int,
    request: dict[str, Any],
    files: list[int],
    limits: dict[str, Any],
    fence: bytes,
    machine: str,
) -> None:
    start = time.monotonic()
    kernel.unshare(kernel.NEW_PID)
    first = kernel.fork_to_wait(machine)
    runner = os.fork()
    if runner == 0:
        program.become(request, files, limits, fence)
    kernel.enter_namespace(own, kernel.NEW_PID)
    for file in files:
        os.close(file)
    ended = _wait(control, runner, start + request["seconds"])
    os.kill(first, signal.SIGKILL)
    _, status = os.waitpid(runner, 0)
    os.waitpid(first, 0)
    late = ended == "late" or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU)
    answer = {
        "exit_code": os.waitstatus_to_exitcode(status),
        "late": late,
        "seconds": time.monotonic() - start,
    }
    control.send(json.dumps(answer).encode())
    view.renew_work(limits["disk_bytes"])


def _wait(control: socket.socket, runner: int, deadline: float) -> str:
    """How the program ended: by itself, "late", or because the owner wants it to."""
    process = os.pidfd_open(runner)
    waiting = select.poll()
    waiting.register(process, select.POLLIN)
    waiting.register(control, select.POLLIN)
    ready = waiting.poll(max(0.0, deadline - time.monotonic()) * 1000)
    os.close(process)
    if not ready:
        return "late"
    if any(fd == process for fd, _ in ready):
        return "by itself"
    if not control.recv(64):
        os._exit(0)
    return "asked"
