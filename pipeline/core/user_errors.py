"""What a user's function raised, told with its file and line."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from pipeline.core.errors import SlipstreamError, UserFunctionError


def note_place(error: BaseException, function: Callable[..., Any]) -> None:
    """Add a note with the line of the user's file in which `function` raised `error`."""
    file, line = _file_of(function), None
    trace = error.__traceback__
    while file is not None and trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    if line is not None:
        error.add_note(f"{file} line {line}")


def in_words(error: BaseException) -> str:
    """Type, text and notes on one line."""
    notes = ", ".join(getattr(error, "__notes__", ()))
    text = f": {error}" if str(error) else ""
    return f"{type(error).__name__}{text}{f' ({notes})' if notes else ''}"


def exit_as_error(error: SystemExit, function: Callable[..., Any]) -> UserFunctionError:
    """What a call of sys.exit in `function` is: a failure like any other. As SystemExit it would
    end the event loop at once, and nothing that runs would be closed."""
    note_place(error, function)
    return UserFunctionError(in_words(error))


def name_errors(function: Callable[..., Any], flag: str, spec: str) -> Callable[..., Any]:
    """`function`, but whatever it raises is a UserFunctionError that names flag, file and line."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SlipstreamError:
            raise
        except (Exception, SystemExit) as error:
            note_place(error, function)
            raise UserFunctionError(f"{flag} {spec} raised {in_words(error)}") from error

    return call


def _file_of(function: Callable[..., Any]) -> str | None:
    """Of a function, a method, a class or an object that can be called."""
    target: Any = inspect.unwrap(function)
    if isinstance(target, type):
        target = vars(target).get("__init__")
    elif not inspect.isroutine(target):
        target = type(target).__call__
    code = getattr(target, "__code__", None)
    return code.co_filename if code is not None else None
