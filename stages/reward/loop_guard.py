"""Async reward functions that block: who holds the event loop is named, and interrupted at its
deadline.

While one does, nothing else moves: no request, no push, no deadline of asyncio's. So a thread looks
on, and a signal (its handler runs in the main thread, where the loop is) raises inside the function
itself. Only C code that never looks at signals goes on."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from types import FrameType
from typing import Any

from stages.reward.pool import Overdue

logger = logging.getLogger(__name__)

NAMED_AFTER_SECONDS = 2.0
LOOK_EVERY_SECONDS = 0.25
# ignored by default and asked for by nobody: a stray one does no harm
SIGNAL = signal.SIGURG


class HeldTooLong(BaseException):
    """Raised inside a function past its deadline; no `except Exception` of its own stops it."""


class LoopGuard:
    """Knows which function's step is running on the event loop, and since when."""

    def __init__(self) -> None:
        self._name, self._file, self._seconds = "", "", 0.0
        self._since: float | None = None  # None: no step is running
        self._named: set[str] = set()
        self._loop_thread = 0
        self._thread: threading.Thread | None = None

    async def run(
        self, coroutine: Coroutine[Any, Any, Any], name: str, file: str, seconds: float
    ) -> Any:
        """What the coroutine returns or raises. Raises Overdue where one of its steps, between two
        awaits, held the loop for `seconds`."""
        self._watch()
        try:
            return await _Steps(coroutine, partial(self._step, name, file, seconds))
        except HeldTooLong:
            self._since = None
            raise Overdue(
                f"no score: it held the event loop for {seconds:g} s (--reward-timeout-seconds)"
                " without an await; as a plain def it would run in a process of its own"
            ) from None

    def _step(self, name: str, file: str, seconds: float, step: Callable[[], Any]) -> Any:
        self._name, self._file, self._seconds = name, file, seconds
        self._since = time.monotonic()
        try:
            return step()
        finally:
            self._since = None

    def _watch(self) -> None:
        """Watches the loop of the calling thread from now on. It is called with every function and
        does nothing where that loop is watched already."""
        if self._thread is not None and self._loop_thread == threading.get_ident():
            return
        self._loop_thread = threading.get_ident()
        if threading.current_thread() is threading.main_thread():
            signal.signal(SIGNAL, self._interrupt)
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, name="loop guard", daemon=True)
            self._thread.start()

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_EVERY_SECONDS)
            since, name = self._since, self._name
            held = 0.0 if since is None else time.monotonic() - since
            if held > NAMED_AFTER_SECONDS and name not in self._named:
                self._named.add(name)
                logger.warning(
                    "the async reward function %s holds the event loop since %.0f s%s: nothing else"
                    " moves. Make it a plain def (it runs in a process of its own), or await what"
                    " it waits for",
                    name,
                    held,
                    self._place(),
                )
            if self._overdue() and self._loop_thread == threading.main_thread().ident:
                signal.pthread_kill(self._loop_thread, SIGNAL)

    def _overdue(self) -> bool:
        since = self._since
        return since is not None and time.monotonic() - since > self._seconds

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._overdue():
            raise HeldTooLong

    def _place(self) -> str:
        """The innermost line of the function's file at which the loop's thread stands."""
        frame = sys._current_frames().get(self._loop_thread)
        while frame is not None and frame.f_code.co_filename != self._file:
            frame = frame.f_back
        return f" ({self._file}, line {frame.f_lineno})" if frame is not None else ""


class _Steps:
    """A coroutine, awaited, each of whose steps goes through `run_step`."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], run_step: Callable[[Callable[[], Any]], Any]
    ) -> None:
        # by this name pipeline.core.awaits finds where the coroutine stands
        self.driven = coroutine
        self._run_step = run_step

    def __await__(self) -> Generator[Any, Any, Any]:
        step = partial(self.driven.send, None)
        while True:
            try:
                awaited = self._run_step(step)
            except StopIteration as done:
                return done.value
            try:
                value = yield awaited
            except BaseException as error:  # CancelledError, too, is the coroutine's to handle
                step = partial(self.driven.throw, error)
            else:
                step = partial(self.driven.send, value)


# one for the process: there is one main thread
GUARD = LoopGuard()
