"""How long the learner and the engines are idle, lap by lap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pipeline.core.time import IdleMeter, TimeSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Lap:
    """The time since the previous train record, and the share of it that either side idled."""

    seconds: float
    # the learner neither stepped nor staged a push (without overlap: pushed) nor saved
    trainer_idle_fraction: float
    generation_idle_fraction: float  # mean over engines of the share of time with no request


class Utilisation:
    """Measures how long the learner and the engines are idle, lap by lap.

    `engine_idle_seconds` returns for every engine the seconds in which it had no request since it
    started. The counter only grows; one that falls belongs to a restarted engine and counts from
    zero. Without engines generation is idle for 0 of a lap."""

    def __init__(
        self, time: TimeSource, engine_idle_seconds: Callable[[], Mapping[str, float]]
    ) -> None:
        self._time = time
        self._trainer = IdleMeter(time)
        self._engine_idle_seconds = engine_idle_seconds
        self._engines = dict(engine_idle_seconds())
        self._lap_start = time.now()

    def trainer_busy(self) -> AbstractContextManager[None]:
        """Put this around every step, push and save of the learner."""
        return self._trainer.busy()

    def lap(self) -> Lap:
        """The shares since the last lap (or construction); begins the next."""
        now, before, engines = self._time.now(), self._engines, dict(self._engine_idle_seconds())
        seconds = now - self._lap_start
        idle = sum(_increase(before.get(name, 0.0), value) for name, value in engines.items())
        share = min(idle / (seconds * len(engines)), 1.0) if engines and seconds > 0 else 0.0
        self._engines, self._lap_start = engines, now
        return Lap(
            seconds=seconds,
            trainer_idle_fraction=self._trainer.lap(),
            generation_idle_fraction=share,
        )


def _increase(before: float, now: float) -> float:
    return now - before if now >= before else now


def counter_total(values: Iterable[float]) -> float:
    """The sum of a counter's increases; a value below its predecessor is a restart from zero."""
    total = last = 0.0
    for value in values:
        total, last = total + _increase(last, value), value
    return total
