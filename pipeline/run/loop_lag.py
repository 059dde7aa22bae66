"""How late the event loop runs what is due: whatever computes on it makes everything else wait."""

from __future__ import annotations

import asyncio
from collections import deque

TICK_SECONDS = 0.02
MOST = 100_000  # ticks that are kept: half an hour's


class LoopLag:
    """A timer that rings again and again. Its delay is what every answer of an engine, every
    admission and every put waits too."""

    def __init__(self, *, tick_seconds: float = TICK_SECONDS) -> None:
        self._tick_seconds = tick_seconds
        self._seconds: deque[float] = deque(maxlen=MOST)  # late, of each tick of this lap
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """On the event loop."""
        self.stop()
        self._seconds.clear()
        self._set(asyncio.get_running_loop())

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lap(self) -> dict[str, float | None]:
        """The seconds of delay since the last lap; begins the next. None where no tick was due."""
        seconds = sorted(self._seconds)
        self._seconds.clear()
        found = {"p50": _nearest(seconds, 0.5), "p99": _nearest(seconds, 0.99)}
        return {**found, "max": seconds[-1] if seconds else None}

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + self._tick_seconds
        self._timer = loop.call_at(self._due, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._seconds.append(max(0.0, loop.time() - self._due))
        self._set(loop)


def _nearest(ascending: list[float], share: float) -> float | None:
    """The quantile by nearest rank: a value that was measured."""
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))] if ascending else None
