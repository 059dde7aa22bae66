"""What the driver and its rollout workers say to each other: small fields, and encoded groups."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.types import Admission, Sample
from pipeline.run.group_maker import MadeGroup, MakeGroup
from pipeline.run.watchdog import Awaited, Watchdog

if TYPE_CHECKING:
    from stages.engine.remote_pool import RemotePool, Suspicion


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A group to be made."""

    admission: Admission
    prompts: list[Sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """Making a group raised: the run ends with it, as it does where the driver makes groups."""

    kind: type[Exception]
    text: str
    notes: tuple[str, ...]
    traceback: str

    def error(self, worker: str) -> Exception:
        """As it was raised there."""
        error = self.kind(self.text)
        for note in (*self.notes, f"in {worker}:\n{self.traceback}"):
            error.add_note(note)
        return error


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What has happened in a worker since the last one."""

    made: list[tuple[int, MadeGroup | Broken]]  # by group index
    in_flight: dict[str, int]  # requests, by endpoint
    suspicions: list[Suspicion]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    logger: str
    level: int
    text: str
    file_only: bool
    terminal_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedLoop:
    seconds: float
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a worker is; it comes also while its event loop runs nothing."""

    lag: dict[str, float | None]  # of its event loop since the last report: p50, p99, max, seconds
    blocked: list[BlockedLoop]
    lines: list[LogLine]
    oldest: list[Awaited]  # groups under way, at the last tick of its loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The parts with which a worker makes groups."""

    pool: RemotePool
    make: MakeGroup
    close: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """What a worker is told when it starts."""

    number: int
    make_bench: Callable[[Watchdog], Bench]  # goes by pickle: a module's function, or a partial
    folder: str  # the driver's working folder: paths of users' functions are relative to it
    log_path: str | None  # where what it prints goes, on the driver's node
    blocked_seconds: float
