"""Ctrl-C and SIGTERM: the first asks for an orderly end (drain, save, close), the second ends at
once, still clean."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")
# `timeout`, terminals and job managers signal a process and its group: the same wish, told twice
SAME_SIGNAL_SECONDS = 1.0


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
    ) -> None:
        """`kill_now` ends every child process synchronously: what a second signal does before it
        leaves (with an exit code)."""
        self._leave, self._now = leave, now
        self._first_at = 0.0
        self._event = asyncio.Event()
        self._kill_now = kill_now
        self.signal_number: int | None = None

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)

    def uninstall(self) -> None:
        """Everything is closed.

        After an orderly end, signals that come late do not spoil the exit code.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            if self.requested:
                signal.signal(number, signal.SIG_IGN)

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

    def _on_signal(self, number: int) -> None:
        if self._event.is_set():
            if self._now() - self._first_at < SAME_SIGNAL_SECONDS:
                return
            print("second signal: leaving at once", file=sys.stderr, flush=True)
            self._kill_now()
            self._leave(128 + number)
            return
        self._first_at = self._now()
        self.signal_number = number
        logger.warning(
            "%s: finishing the step under way, saving, closing (again to leave at once)",
            signal.Signals(number).name,
        )
        self._event.set()
