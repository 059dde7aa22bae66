"""Injected time.

Whoever measures a wait takes a `TimeSource`; tests and the simulator move one by hand.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class TimeSource(Protocol):
    def now(self) -> float:
        """Seconds from an arbitrary origin; never goes back."""


class MonotonicTime:
    def now(self) -> float:
        return time.monotonic()


class ManualTime:
    """Stands still until moved."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, f"time does not go back: {seconds}"
        self._now += seconds


class IdleMeter:
    """The share of time in which nobody is busy.

    Any number may be busy at once; it is idle when none is.
    """

    def __init__(self, clock: TimeSource) -> None:
        self._clock = clock
        self._active = 0
        self._since = self._start = self._lap_start = clock.now()
        self._idle = self._lap_idle = 0.0

    @contextmanager
    def busy(self) -> Iterator[None]:
        self._advance()
        self._active += 1
        try:
            yield
        finally:
            self._advance()
            self._active -= 1

    @property
    def idle_seconds(self) -> float:
        self._advance()
        return self._idle

    @property
    def idle_fraction(self) -> float:
        """Of the time since construction; 0 when none has passed."""
        return _share(self.idle_seconds, self._clock.now() - self._start)

    def lap(self) -> float:
        """The idle share since the last lap (or construction); begins the next."""
        idle, now = self.idle_seconds, self._clock.now()
        share = _share(idle - self._lap_idle, now - self._lap_start)
        self._lap_idle, self._lap_start = idle, now
        return share

    def _advance(self) -> None:
        now = self._clock.now()
        if self._active == 0:
            self._idle += now - self._since
        self._since = now


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
