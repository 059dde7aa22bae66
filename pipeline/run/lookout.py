"""The thread that asks the watchdog. It is a thread because an event loop that is blocked can ask
nothing."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pipeline.core.awaits import Place, describe
from pipeline.core.format import duration
from pipeline.run.watchdog import AGAIN, Silence

logger = logging.getLogger(__name__)
TICK_SECONDS = 1.0
BLOCKED_SECONDS = 5.0  # a loop that runs nothing for so long holds up everybody


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """The event loop runs nothing: some function computes or waits without `await`."""

    seconds: float
    where: str
    worker: int | None = None  # the rollout worker whose loop it is; None: the driver's

    def __str__(self) -> str:
        whole = self.worker is None
        who = "the whole run" if whole else f"rollout worker {self.worker}"
        return (
            f"{who} stands still for {duration(self.seconds)}: a function holds"
            f" {'the' if whole else 'its'} event loop, at {self.where}; what takes long must be"
            " awaited, or run in a thread"
        )

    def record(self) -> dict[str, object]:
        found = {"stage": "blocked", "seconds": self.seconds, "where": self.where}
        return found if self.worker is None else {**found, "worker": self.worker}


class Watched(Protocol):
    """What is asked on the loop, at every tick (pipeline.run.watchdog.Watchdog)."""

    def check(self) -> Silence | None: ...


class Lookout:
    """Call `start` on the event loop to watch, and `stop` when all is closed. It reports a silence
    from the loop, and a blocked loop from its own thread."""

    def __init__(
        self,
        watchdog: Watched,
        report: Callable[[Silence | Blocked], None],
        *,
        tick_seconds: float = TICK_SECONDS,
        blocked_seconds: float = BLOCKED_SECONDS,
    ) -> None:
        self._watchdog, self._report = watchdog, report
        self._tick_seconds, self._blocked_seconds = tick_seconds, blocked_seconds
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        watch = (asyncio.get_running_loop(), threading.get_ident())
        self._thread = threading.Thread(target=self._watch, args=watch, name="lookout", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        answered = threading.Event()
        asked, told = time.monotonic(), 0.0
        answered.set()
        while not self._over.wait(self._tick_seconds):
            if answered.is_set():
                answered.clear()
                asked, told = time.monotonic(), 0.0
                try:
                    loop.call_soon_threadsafe(self._look, answered)
                except RuntimeError:  # the loop is closed: there is nothing left to watch
                    return
                continue
            seconds = time.monotonic() - asked
            if seconds >= max(self._blocked_seconds, AGAIN * told):
                told = seconds
                self._report(Blocked(seconds=seconds, where=where_thread_stands(thread)))

    def _look(self, answered: threading.Event) -> None:
        answered.set()
        if self._over.is_set():
            return
        silence = self._watchdog.check()
        if silence is not None:
            self._report(silence)


def where_thread_stands(thread: int) -> str:
    """The innermost lines of a thread of this process, in words."""
    places, frame = [], sys._current_frames().get(thread)
    while frame is not None:
        places.append(Place.of(frame))
        frame = frame.f_back
    return describe(reversed(places))
