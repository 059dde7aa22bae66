"""A user's own function, named on the command line: `file.py[:name]`, `package.module:name` or
`package.module.name`.

`load_function` imports and returns it; `check_function` only reads the source (no user code runs),
so that a misspelt name is reported before anything starts. Both raise ConfigError saying what was
tried."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.core.function_source import FunctionSource, find_source
from pipeline.core.own_files import places_tried
from pipeline.core.slime_names import offer_slime_names
from pipeline.core.user_modules import import_user_file


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSpec:
    """Where a function lives: in a source file, or in an importable module."""

    spec: str  # as the user wrote it
    name: str
    file: Path | None = None
    module: str | None = None


def parse_spec(spec: str, default_name: str | None) -> FunctionSpec:
    """Split `spec`; a file without `:name` means the function `default_name`."""
    place, colon, name = spec.rpartition(":") if ":" in spec else (spec, "", "")
    if place.endswith(".py"):
        name = name or default_name or ""
        if name.isidentifier():
            return FunctionSpec(spec=spec, name=name, file=Path(place).expanduser())
    else:
        module, _, last = (place, "", name) if colon else place.rpartition(".")
        if (
            last.isidentifier()
            and module
            and all(part.isidentifier() for part in module.split("."))
        ):
            return FunctionSpec(spec=spec, name=last, module=module)
    raise ConfigError(
        f"{spec!r} names no function: write file.py:name,"
        f" {f'file.py (meaning {default_name}), ' if default_name else ''}package.module:name or"
        " package.module.name"
    )


def load_function(spec: str, default_name: str | None = None) -> Callable[..., Any]:
    """Import and return the callable that `spec` names.

    The same file is loaded once, however often it is named.
    """
    where = parse_spec(spec, default_name)
    offer_slime_names()
    try:
        module = (
            _load_file(where.file, spec)
            if where.file
            else importlib.import_module(where.module or "")
        )
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        # user code: whatever it raises is a fault of the file that the flag names
        if (
            isinstance(error, ModuleNotFoundError)
            and where.module
            and (where.module + ".").startswith(f"{error.name}.")
        ):
            raise ConfigError(
                f"{spec!r}: no module named {error.name!r} (tried to import {where.module!r};"
                f" {_search_hint()})"
            ) from error
        raise ConfigError(
            f"{spec!r} could not be imported: {type(error).__name__}:"
            f" {error}{_line_of(error, where.file)}"
        ) from error
    function = getattr(module, where.name, None)
    if function is None:
        raise _no_such_function(
            where,
            [
                n
                for n, v in vars(module).items()
                if callable(v) and getattr(v, "__module__", "") == module.__name__
            ],
        )
    if not callable(function):
        raise ConfigError(
            f"{spec!r}: {where.name} is a {type(function).__name__}, expected a function"
        )
    return function


def check_function(spec: str, default_name: str | None = None) -> FunctionSource | None:
    """Checks by reading the source that `spec` names something that exists. Returns its source, or
    None where there is none to read.

    What cannot be read is left to `load_function`. Raises ConfigError."""
    where = parse_spec(spec, default_name)
    offer_slime_names()
    file = where.file if where.file else _module_file(where)
    if file is None:
        return None
    if not file.is_file():
        raise _missing_file(spec, file)
    source = _read(spec, file)
    if where.name not in source.names and not source.has_star:
        raise _no_such_function(where, source.functions)
    return find_source(file, source.tree, where.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A user's file, read and not run."""

    tree: ast.Module
    names: frozenset[str]  # bound at module level
    functions: tuple[str, ...]  # those of them that are functions or classes
    has_star: bool  # an import of names that nobody knows without running it


def read_source(spec: str) -> SourceFile:
    """The file that `spec` is. Raises ConfigError where there is none, or it is no Python."""
    file = Path(spec).expanduser()
    if not file.is_file():
        raise _missing_file(spec, file)
    return _read(spec, file)


def _read(spec: str, file: Path) -> SourceFile:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    except (SyntaxError, UnicodeDecodeError) as error:
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ConfigError(
            f"{spec!r}: {file}{line} is not valid Python:"
            f" {error.msg if isinstance(error, SyntaxError) else error}"
        ) from error
    names, functions, star = _top_level_names(tree.body)
    return SourceFile(tree=tree, names=frozenset(names), functions=tuple(functions), has_star=star)


def _load_file(file: Path, spec: str) -> ModuleType:
    if not file.is_file():
        raise _missing_file(spec, file)
    return import_user_file(file.resolve())


def _module_file(where: FunctionSpec) -> Path | None:
    """The source of a module, without importing anything (find_spec of a dotted name would import
    its parents)."""
    top, *rest = (where.module or "").split(".")
    found = sys.modules[top].__spec__ if top in sys.modules else importlib.util.find_spec(top)
    if found is None:
        raise ConfigError(f"{where.spec!r}: no module named {top!r} ({_search_hint()})")
    folders = [Path(p) for p in found.submodule_search_locations or ()]
    if not rest:
        return Path(found.origin) if found.origin and found.origin.endswith(".py") else None
    for folder in folders:
        base = folder.joinpath(*rest)
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def _top_level_names(body: Iterable[ast.stmt]) -> tuple[set[str], list[str], bool]:
    """(names bound at module level, those of them that are functions or classes, is there a star
    import?)."""
    names: set[str] = set()
    functions: list[str] = []
    star = False
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
                functions.append(node.name)
            case ast.Import() | ast.ImportFrom():
                names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
                star |= any(alias.name == "*" for alias in node.names)
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(
                    n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)
                )
            case ast.If() | ast.Try() | ast.With():
                for part in (
                    node.body,
                    getattr(node, "orelse", []),
                    getattr(node, "finalbody", []),
                ):
                    more, more_functions, more_star = _top_level_names(part)
                    names |= more
                    functions += more_functions
                    star |= more_star
    return names, functions, star


def _missing_file(spec: str, file: Path) -> ConfigError:
    return ConfigError(f"{spec!r}: there is no file {file} ({places_tried(file)})")


def _no_such_function(where: FunctionSpec, functions: Iterable[str]) -> ConfigError:
    public = [n for n in functions if not n.startswith("_")]
    close = difflib.get_close_matches(where.name, public, n=1)
    listed = ", ".join(public[:8]) + (", ..." if len(public) > 8 else "")
    hint = f"did you mean {close[0]!r}?" if close else f"it has {listed or 'no functions'}"
    return ConfigError(
        f"{where.spec!r}: {where.file or where.module} has no function {where.name!r}; {hint}"
    )


def _search_hint() -> str:
    return (
        "searched sys.path; set PYTHONPATH, or name a file: path/to/file.py:name. Working folder:"
        f" {Path.cwd()}"
    )


def _line_of(error: BaseException, file: Path | None) -> str:
    """The line of the user's file at which it happened."""
    if file is None:
        return ""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}, line {error.lineno})"
    line, trace = None, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == file.resolve():
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" ({file}, line {line})" if line else ""
