"""Ctrl-C and SIGTERM: the first asks for an orderly end (drain, save, close), the second ends at
once, still clean, whatever the event loop is doing."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pipeline.run.lookout import where_thread_stands
from pipeline.run.signals import SignalThread

logger = logging.getLogger(__name__)
T = TypeVar("T")
# `timeout`, terminals and job managers signal a process and its group: the same wish, told twice
SAME_SIGNAL_SECONDS = 1.0
# an event loop that does not answer for so long after the first signal is held by a function
HEARD_SECONDS = 1.5
# a second signal's children that are not gone by then stay
LEAVE_SECONDS = 4.0


class StopRequested(Exception):  # noqa: N818  (not an error: the user's wish)
    """The user asked the run to end. Raised where the loop next waits."""


class Stop:
    """The user's wish to end, as an event one can wait against."""

    def __init__(
        self,
        kill_now: Callable[[], None],
        *,
        leave: Callable[[int], None] = os._exit,
        now: Callable[[], float] = time.monotonic,
        heard_seconds: float = HEARD_SECONDS,
    ) -> None:
        """`kill_now` ends every child process synchronously, on any thread: what a second signal
        does before it leaves (with an exit code)."""
        self._leave, self._now, self._heard_seconds = leave, now, heard_seconds
        self._first_at = 0.0
        self._event = asyncio.Event()
        self._heard = threading.Event()  # by the event loop
        self._kill_now = kill_now
        self._signals = SignalThread((signal.SIGINT, signal.SIGTERM), self._on_signal)
        self.signal_number: int | None = None

    def install(self) -> None:
        """Starts listening for signals. Call it on the event loop, in the main thread."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._signals.start()

    def uninstall(self) -> None:
        """Stops listening, when everything is closed.

        After an orderly end, signals that come late do not spoil the exit code."""
        self._signals.stop(signal.SIG_IGN if self.requested else None)

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    async def or_result(self, wait: Callable[[], Awaitable[T]]) -> T:
        """The result of `wait()`, or StopRequested as soon as the user asks (or has asked) to
        end."""
        if self.requested:  # else a result that is always ready at once would never let us stop
            raise StopRequested
        task = asyncio.ensure_future(wait())
        stop = asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise StopRequested
        finally:
            for t in (task, stop):
                t.cancel()
            await asyncio.wait({task, stop})
            if not task.cancelled():
                task.exception()  # of work that failed as it was called off: seen

    # -- on the thread of the signals: nothing here may wait for the event loop --------------------

    def _on_signal(self, number: int) -> None:
        if self.signal_number is not None:
            if self._now() - self._first_at >= SAME_SIGNAL_SECONDS:
                self._leave_at_once(128 + number)
            return
        self._first_at, self.signal_number = self._now(), number
        self._loop.call_soon_threadsafe(self._wish)
        threading.Thread(target=self._tell, args=(number,), name="signal", daemon=True).start()

    def _leave_at_once(self, code: int) -> None:
        """A child that cannot be ended, or a terminal that takes no more text, holds up nobody."""
        self._signals.leaving.set()
        limit = threading.Timer(LEAVE_SECONDS, self._go, (code,))
        limit.daemon = True
        limit.start()
        try:
            print("second signal: leaving at once", file=sys.stderr, flush=True)
            self._kill_now()
        finally:
            limit.cancel()
            self._go(code)

    def _go(self, code: int) -> None:
        self._leave(code)
        self._signals.leaving.clear()  # it came back: whoever gave `leave` wants to go on

    def _tell(self, number: int) -> None:
        logger.warning(
            "%s: finishing the step under way, saving, closing (again to leave at once)",
            signal.Signals(number).name,
        )
        if not self._heard.wait(self._heard_seconds):
            logger.warning(
                "nothing can be finished yet: a function holds the event loop, at %s; signal again"
                " to leave at once",
                where_thread_stands(self._loop_thread),
            )

    # -- on the event loop -------------------------------------------------------------------------

    def _wish(self) -> None:
        self._heard.set()
        self._event.set()
