"""The pool as another process sees it: it leases by itself, of what the pool's owner says is
open, and tells the owner of failures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from pipeline.core.errors import EngineError, ForgottenWeightsError
from stages.engine.leases import Leases
from stages.engine.view import EngineView, PoolView


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """A request failed at transport level: the pool's owner is asked to look at the engine."""

    endpoint: str
    error: str
    kind: Literal["timeout", "forgotten", "other"]

    @classmethod
    def of(cls, endpoint: str, error: Exception) -> Suspicion:
        kind: Literal["timeout", "forgotten", "other"] = "other"
        if isinstance(error, ForgottenWeightsError):
            kind = "forgotten"
        elif isinstance(error, TimeoutError):
            kind = "timeout"
        return cls(endpoint=endpoint, error=f"{type(error).__name__}: {error}", kind=kind)

    def as_error(self) -> Exception:
        """As the request raised it, for the owner's `report_failure`."""
        kinds = {"timeout": TimeoutError, "forgotten": ForgottenWeightsError, "other": EngineError}
        return kinds[self.kind](self.error)


class _Busy:
    """Says when the first request begins and when the last one ends."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed, self.count = changed, 0

    @contextmanager
    def busy(self) -> Iterator[None]:
        self.count += 1
        if self.count == 1:
            self._changed()
        try:
            yield
        finally:
            self.count -= 1
            if self.count == 0:
                self._changed()


@dataclass(slots=True, eq=False)
class _Seat:
    view: EngineView
    meter: _Busy
    in_flight: int = 0
    emptied: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def endpoint(self) -> str:
        return self.view.endpoint

    @property
    def is_open(self) -> bool:
        return self.view.is_open


class RemotePool:
    """`EnginePool` over what `follow` is told. `take_suspicions` and `in_flight` are what its owner
    should be told when `on_news` is called; `checked` answers a suspicion."""

    def __init__(self, *, concurrency: int) -> None:
        """`concurrency`: this process's share of the requests in flight at one engine."""
        self._seats: dict[str, _Seat] = {}
        self._leases = Leases(self._seats, concurrency)
        self._number = -1
        self._checks: dict[str, asyncio.Future[None]] = {}
        self._suspicions: list[Suspicion] = []
        self.on_news: Callable[[], None] = lambda: None

    def follow(self, view: PoolView) -> None:
        """An older view than the last is of no use, and ignored."""
        if view.number <= self._number:
            return
        self._number = view.number
        for engine in view.engines:
            seat = self._seats.get(engine.endpoint)
            if seat is None:
                seat = _Seat(engine, _Busy(lambda: self.on_news()))
                self._seats[engine.endpoint] = seat
            self._changes(seat.view, engine)
            seat.view = engine
        for gone in self._seats.keys() - {engine.endpoint for engine in view.engines}:
            del self._seats[gone]
            self._ended(gone)
        lost = [engine.lost for engine in view.engines if engine.lost is not None]
        if lost and len(lost) == len(view.engines):
            self._leases.fail(EngineError(f"no engine is left. The last to go: {lost[-1]}"))
        self._leases.hand_out()

    def _changes(self, before: EngineView, now: EngineView) -> None:
        """For those that simulate what the engines do."""

    def _ended(self, endpoint: str) -> None:
        """The same: it is not in the pool any more."""

    @property
    def endpoints(self) -> Sequence[str]:
        return tuple(self._seats)

    def version_of(self, endpoint: str) -> int:
        return self._seats[endpoint].view.version

    def lease(self, session_id: str | None = None) -> AbstractAsyncContextManager[str]:
        return self._leases.lease(session_id)

    async def report_failure(self, endpoint: str, error: Exception) -> None:
        """Returns when the pool's owner has looked. A thousand requests may fail at once: one
        question asks for them all."""
        check = self._checks.get(endpoint)
        if check is None:
            check = self._checks[endpoint] = asyncio.get_running_loop().create_future()
            self._suspicions.append(Suspicion.of(endpoint, error))
            self.on_news()
        await asyncio.shield(check)

    def checked(self, endpoint: str) -> None:
        check = self._checks.pop(endpoint, None)
        if check is not None and not check.done():
            check.set_result(None)

    def take_suspicions(self) -> list[Suspicion]:
        taken, self._suspicions = self._suspicions, []
        return taken

    def in_flight(self) -> dict[str, int]:
        return {endpoint: seat.in_flight for endpoint, seat in self._seats.items()}

    async def drained(self, endpoint: str) -> None:
        if (seat := self._seats.get(endpoint)) is not None:
            await self._leases.drained(seat)
