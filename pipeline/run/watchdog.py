"""What the learner's loop waits for, since when, and at which line: reported when nothing was
trained for long.

Pure: time is a parameter; nothing here sleeps, prints or ends anything. `pipeline.run.lookout` asks
it regularly."""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.core.awaits import where_it_stands
from pipeline.core.format import counted, duration
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.run.drops import DroppedGroups, Drops

Kind = Literal["group", "evaluation", "push"]
LONG_SECONDS = 30.0  # less is never worth a word
ROLLOUTS = 3.0  # nor are so many median rollouts
AGAIN = 2.0  # a silence is told of again when it is so many times as long
_PACE_WINDOW = 20  # rollouts of the median
_NAMED = 4  # of those that are awaited
_OLD = 0.25  # what is under way for this share of a silence may be its cause
# whom a stage of the learner's loop waits for; of the others the line says enough
_AWAITED: dict[str, Kind] = {"take": "group", "evaluations": "evaluation", "push": "push"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Something under way."""

    stage: str
    since: float
    task: asyncio.Task[Any] | None
    kind: Kind | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """One whom the learner's loop waits for."""

    kind: str
    number: int | None
    stage: str  # generate, reward, put; evaluate; deliver
    seconds: float  # in this stage
    where: str

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.number}: {self.stage} for {duration(self.seconds)}, at {self.where}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Nothing was trained for so long, and why."""

    seconds: float
    num_trained: int
    rollout_seconds: float | None  # of the median rollout; None before the second
    stage: str  # of the learner's loop: start, take, step, push, save, evaluations, close
    stage_seconds: float
    where: str | None  # the line at which the loop stands; None when others are awaited
    awaited: tuple[Awaited, ...] = field(default=())  # the oldest
    num_awaited: int = 0
    dropped: DroppedGroups | None = None  # instead of being trained on

    @property
    def is_start(self) -> bool:
        """Is the run still starting? Engines and learner of some sizes take minutes to start: that
        is news, not a fault."""
        return self.stage == "start"

    def __str__(self) -> str:
        if self.is_start:
            return f"still starting after {duration(self.stage_seconds)}, at {self.where}"
        usual = (
            f" (a rollout takes {duration(self.rollout_seconds)})"
            if self.rollout_seconds is not None
            else ""
        )
        begin = f"nothing was trained for {duration(self.seconds)}{usual}:"
        if self.dropped is not None:
            begin += f" {self.dropped}; now"
        advice = f". {self.dropped.advice}" if self.dropped and self.dropped.advice else ""
        return f"{begin} {self._standing()}{advice}"

    def _standing(self) -> str:
        doing = f"the learner is at '{self.stage}' for {duration(self.stage_seconds)}"
        if not self.awaited:
            return f"{doing}, at {self.where}"
        oldest = self.awaited[0].seconds
        if self.dropped is not None and oldest < _OLD * self.seconds:
            # groups come and go: it is not they that hold it up
            under_way = counted(self.num_awaited, self.awaited[0].kind)
            return f"{doing}, the oldest of {under_way} under way for {duration(oldest)}"
        more = self.num_awaited - len(self.awaited)
        rest = [f"and {more} more"] if more else []
        return f"{doing} and waits for " + "; ".join([*map(str, self.awaited), *rest])

    def record(self) -> dict[str, Any]:
        """The fields of the silence's row in metrics.jsonl."""
        return asdict(self)


class Watchdog:
    """Is told of everything that begins and ends; `check` asks it for a report now and then."""

    def __init__(
        self,
        time: TimeSource | None = None,
        *,
        long_seconds: float = LONG_SECONDS,
        rollouts: float = ROLLOUTS,
    ) -> None:
        self._time = time or MonotonicTime()
        self._long_seconds, self._rollouts = long_seconds, rollouts
        self._loop: Activity | None = None
        self._beside: dict[int, Activity] = {}
        self._next_id = 0
        self._last = self._time.now()
        self._told = 0.0  # seconds of silence at the last report
        self._paces: deque[float] = deque(maxlen=_PACE_WINDOW)
        self._num_trained = 0
        self._drops: Drops | None = None
        self.elsewhere: Callable[[], Mapping[int, Awaited]] | None = None
        """Where groups stand that other processes make, by their numbers."""

    def watch_drops(self, drops: Drops) -> None:
        """A silence of the learner that waits for groups tells of those that were dropped."""
        self._drops = drops

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Put this around a step of the learner's loop."""
        before, self._loop = self._loop, Activity(stage=name, **self._now())
        try:
            yield
        finally:
            self._loop = before

    @contextmanager
    def beside(self, kind: Kind, number: int, stage: str) -> Iterator[None]:
        """Put this around what happens beside the learner's loop."""
        self._next_id += 1
        own = self._next_id
        self._beside[own] = Activity(stage=stage, kind=kind, number=number, **self._now())
        try:
            yield
        finally:
            del self._beside[own]

    def trained(self) -> None:
        """A rollout was trained: the silence is over."""
        now = self._time.now()
        if self._num_trained:
            self._paces.append(now - self._last)
        self._num_trained += 1
        self._last, self._told = now, 0.0
        if self._drops is not None:
            self._drops.trained()

    @property
    def patience_seconds(self) -> float:
        """How long a silence may last before it is reported."""
        usual = self._rollouts * statistics.median(self._paces) if self._paces else 0.0
        return max(self._long_seconds, usual)

    def check(self) -> Silence | None:
        """The silence that is to be reported now; None most of the time. Call it on the loop of the
        tasks."""
        now = self._time.now()
        seconds = now - self._last
        if self._loop is None or seconds < max(self.patience_seconds, AGAIN * self._told):
            return None
        self._told = seconds
        kind = _AWAITED.get(self._loop.stage)
        awaited = [] if kind is None else self.under_way(kind)
        if kind == "group" and not awaited:  # no group may be admitted before the push is through
            kind, awaited = "push", self.under_way("push")
        return Silence(
            seconds=seconds,
            num_trained=self._num_trained,
            rollout_seconds=statistics.median(self._paces) if self._paces else None,
            stage=self._loop.stage,
            stage_seconds=now - self._loop.since,
            where=None if awaited else _where(self._loop),
            awaited=tuple(awaited),
            num_awaited=sum(a.kind == kind for a in self._beside.values()) if kind else 0,
            dropped=self._drops.since_trained()
            if self._drops and self._loop.stage == "take"
            else None,
        )

    def under_way(self, kind: Kind, most: int = _NAMED) -> list[Awaited]:
        """What of this kind happens beside the learner's loop, the oldest first."""
        now = self._time.now()
        own = sorted((a for a in self._beside.values() if a.kind == kind), key=lambda a: a.since)
        found = [
            Awaited(
                kind=str(a.kind),
                number=a.number,
                stage=a.stage,
                seconds=now - a.since,
                where=_where(a),
            )
            for a in own[:most]
        ]
        if self.elsewhere is None or kind != "group":
            return found
        better = self.elsewhere()
        return [a if a.number is None else better.get(a.number, a) for a in found]

    def _now(self) -> dict[str, Any]:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no loop: a test, or a replay
            task = None
        return {"since": self._time.now(), "task": task}


def _where(activity: Activity) -> str:
    return "a line unknown" if activity.task is None else where_it_stands(activity.task)
