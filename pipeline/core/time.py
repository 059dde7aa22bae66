"""Time as a parameter.

Whatever measures a wait takes a `TimeSource`; tests move one by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol


class TimeSource(Protocol):
    def now(self) -> float:
        """Seconds from an arbitrary origin; never goes back."""


class MonotonicTime:
    def now(self) -> float:
        return monotonic()


class IdleMeter:
    """Measures the share of time in which nobody is busy. Any number may be busy at once."""

    def __init__(self, time: TimeSource) -> None:
        self._time = time
        self._active = 0
        self._since = self._lap_start = time.now()
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

    def lap(self) -> float:
        """The idle share since the last lap (or construction); begins the next."""
        idle, now = self.idle_seconds, self._time.now()
        share = _share(idle - self._lap_idle, now - self._lap_start)
        self._lap_idle, self._lap_start = idle, now
        return share

    def _advance(self) -> None:
        now = self._time.now()
        if self._active == 0:
            self._idle += now - self._since
        self._since = now


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
