"""What a user's function raised, reported with its file and line."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.core.errors import SlipstreamError, UserFunctionError

logger = logging.getLogger(__name__)
# of a user's function; as SystemExit or KeyboardInterrupt it would end the event loop at once, and
# nothing that runs would be closed
ANY_FAILURE = (Exception, SystemExit, KeyboardInterrupt)
_logged: set[str] = set()  # places whose traceback is in the log


def note_place(error: BaseException, function: Callable[..., Any], flag: str = "") -> None:
    """Adds a note with the line of the user's file at which `function` raised `error`."""
    file, line = _file_of(function), None
    trace = error.__traceback__
    while file is not None and trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    if line is not None:
        error.add_note(f"{flag}{', ' if flag else ''}{file} line {line}")


def in_words(error: BaseException) -> str:
    """The error's type, text and notes on one line."""
    notes = ", ".join(getattr(error, "__notes__", ()))
    text = f": {error}" if str(error) else ""
    return f"{type(error).__name__}{text}{f' ({notes})' if notes else ''}"


def names_a_hook(text: str) -> bool:
    """Is this what a user's function has raised, in words?"""
    return re.search(r"\(--[\w-]+-path, |^--[\w-]+-path .* raised ", text) is not None


@contextmanager
def told(function: Callable[..., Any], flag: str) -> Iterator[None]:
    """Around an awaited call of a user's function: what it raises has a note of flag, file and
    line, and its traceback is in the log. A call of sys.exit is a failure like any other, and so is
    the cancellation of something else that it awaits."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise _as_failure(error, function, flag) from error
    except Exception as error:
        note_place(error, function, flag)
        log_traceback(in_words(error), "".join(traceback.format_exception(error)))
        raise
    except BaseException as error:
        if isinstance(error, ANY_FAILURE):
            raise _as_failure(error, function, flag) from error
        raise


def _as_failure(error: BaseException, function: Callable[..., Any], flag: str) -> UserFunctionError:
    note_place(error, function, flag)
    log_traceback(in_words(error), "".join(traceback.format_exception(error)))
    return UserFunctionError(in_words(error))


def log_traceback(place: str, text: str) -> None:
    """Into the run's log, once for what is said of the place."""
    if place not in _logged:
        _logged.add(place)
        logger.warning("a user's function raised %s\n%s", place, text, extra={"file_only": True})


def name_errors(function: Callable[..., Any], flag: str, spec: str) -> Callable[..., Any]:
    """`function`, but whatever it raises is a UserFunctionError that names flag, file and line."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SlipstreamError:
            raise
        except ANY_FAILURE as error:
            note_place(error, function)
            raise UserFunctionError(f"{flag} {spec} raised {in_words(error)}") from error

    return call


def _file_of(function: Callable[..., Any]) -> str | None:
    """The file of a function, a method, a class or a callable object."""
    target: Any = inspect.unwrap(function)
    if isinstance(target, type):
        target = vars(target).get("__init__")
    elif not inspect.isroutine(target):
        target = type(target).__call__
    code = getattr(target, "__code__", None)
    return code.co_filename if code is not None else None
