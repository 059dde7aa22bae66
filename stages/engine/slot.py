"""One engine's place in a pool: what the pool needs of a process, and what it knows about it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.core.errors import EngineError
from pipeline.core.time import IdleMeter


class EngineProcess(Protocol):
    """What the pool needs of `launch.Engine`."""

    endpoint: str  # once it is started; before, whatever tells it from the others
    on_death: Callable[[str], None] | None  # told how, when it ends by itself; the pool sets it

    @property
    def name(self) -> str: ...
    @property
    def alive(self) -> bool: ...
    async def start(self, weight_version: int, timeout_seconds: float) -> None: ...
    async def healthy(self, *, deep: bool) -> bool: ...
    async def stop(self) -> None: ...
    def kill(self) -> None: ...
    def log_tail(self) -> str: ...
    async def on_nodes(self, work: Callable[..., Any], *args: Any) -> list[Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """A snapshot; per-engine tuples are in the order of `endpoints`."""

    num_engines: int
    num_healthy: int
    num_in_flight: tuple[int, ...]
    num_waiting: int
    num_restarts: int
    idle_seconds: tuple[float, ...]
    versions: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Slot:
    """One engine's place in the pool."""

    engine: EngineProcess
    meter: IdleMeter  # idle while no request is in flight
    version: int
    in_flight: int = 0
    up: bool = False  # started, and holding the weights of `version`
    ended: bool = True  # by us, or not yet started
    gated: bool = False  # a push is under way
    leaving: bool = False  # it is being drained, and will not come back
    restarts: int = 0
    lacks_room: bool = False  # it waits for a node that has devices for it
    lost: EngineError | None = None  # why it will not come back
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # up or lost
    emptied: asyncio.Event = field(default_factory=asyncio.Event)  # no request is in flight
    opened: asyncio.Event = field(default_factory=asyncio.Event)  # a push has ended
    restarting: asyncio.Task[None] | None = None
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)
    elsewhere: dict[str, int] = field(default_factory=dict)  # who else -> requests in flight
    _busy_elsewhere: ExitStack = field(default_factory=ExitStack)

    @property
    def endpoint(self) -> str:
        return self.engine.endpoint

    @property
    def is_open(self) -> bool:
        return self.up and not self.gated and not self.leaving

    @property
    def stays(self) -> bool:
        """Does it serve, or will it again?"""
        return self.lost is None and not self.leaving

    @property
    def state(self) -> str:
        """In a word, for people."""
        if self.lost is not None:
            return "lost"
        if self.leaving:
            return "draining"
        if self.lacks_room:
            return "waiting for room"
        if not self.up:
            return "starting" if not self.restarts else "restarting"
        return "push" if self.gated else "serving"

    @property
    def num_in_flight(self) -> int:
        """Whoever sent them."""
        return self.in_flight + sum(self.elsewhere.values())

    def count_elsewhere(self, who: str, num: int) -> None:
        """So many requests of theirs are in flight: the engine is not idle meanwhile."""
        before = any(self.elsewhere.values())
        self.elsewhere[who] = num
        if any(self.elsewhere.values()) and not before:
            self._busy_elsewhere.enter_context(self.meter.busy())
        elif before and not any(self.elsewhere.values()):
            self._busy_elsewhere.close()
