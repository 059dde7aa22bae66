"""What one agent may ask of the gateway that others use too."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.core.time import TimeSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds; what is beyond them is refused with 413 or 429."""

    max_body_bytes: int = 32 << 20
    max_sessions: int = 1 << 16
    max_in_flight: int = 256  # requests of one session that wait for their answers
    requests_per_second: float = 100.0  # of one session, over time
    burst: int = 400  # and at once


class RateLimit:
    """A token bucket: `burst` requests at once, then `requests_per_second`."""

    def __init__(self, limits: Limits, time: TimeSource) -> None:
        self._rate, self._burst, self._time = limits.requests_per_second, limits.burst, time
        self._left, self._since = float(limits.burst), time.now()

    def take(self) -> float:
        """0.0, and the request is counted; or how many seconds it comes too early."""
        now = self._time.now()
        self._left = min(self._burst, self._left + (now - self._since) * self._rate)
        self._since = now
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0.0
