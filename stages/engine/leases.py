"""Who gets the next request: the least-loaded open engine, first come, first served.

Everything runs on one event loop, so what is checked without an await in between holds."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Protocol

from pipeline.core.errors import EngineError

MAX_SESSIONS = 1 << 16  # remembered session -> engine pairs


class Meter(Protocol):
    """Is told while a request is in flight (pipeline.core.time.IdleMeter)."""

    def busy(self) -> AbstractContextManager[None]: ...


class Seat(Protocol):
    """One engine, as whoever leases it sees it."""

    in_flight: int
    emptied: asyncio.Event  # no request is in flight

    @property
    def endpoint(self) -> str: ...
    @property
    def is_open(self) -> bool:
        """Does it take new requests?"""

    @property
    def meter(self) -> Meter: ...


class Leases:
    """Call `hand_out` whenever a seat has opened."""

    def __init__(self, seats: Mapping[str, Seat], concurrency: int) -> None:
        """`seats`: by endpoint, live. `concurrency`: requests in flight at one engine."""
        self._seats, self._concurrency = seats, concurrency
        self._waiting: deque[tuple[asyncio.Future[Seat], str | None]] = deque()
        self._sessions: OrderedDict[str, Seat] = OrderedDict()
        self._lost: EngineError | None = None

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def lease(self, session_id: str | None = None) -> AbstractAsyncContextManager[str]:
        """See EnginePool. A session goes back to its engine while that one has room. A session
        whose engine is full, gated or ill moves: after a push its cached KV is of no use anyway."""
        return _Lease(self, session_id)

    async def take(self, session_id: str | None) -> Seat:
        """A seat with one request more. Whoever has it gives it back."""
        seat = self._choose(session_id) if not self._waiting else None
        if seat is None:
            seat = await self._wait(session_id)
        else:
            seat.in_flight += 1
        if session_id is not None:
            self._remember(session_id, seat)
        return seat

    def give_back(self, seat: Seat) -> None:
        seat.in_flight -= 1
        seat.emptied.set()
        if self._waiting:
            self.hand_out()

    async def drained(self, seat: Seat) -> None:
        """Waits until no request is in flight there; it stays so while the seat is not open."""
        while seat.in_flight:
            seat.emptied.clear()
            await seat.emptied.wait()

    def hand_out(self) -> None:
        while self._waiting:
            future, session_id = self._waiting[0]
            if not future.done():
                seat = self._choose(session_id)
                if seat is None:
                    return
                seat.in_flight += 1
                future.set_result(seat)
            self._waiting.popleft()

    def fail(self, error: EngineError) -> None:
        """No engine is left: whoever waits, or comes, gets this."""
        self._lost = error
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(EngineError(str(error)))

    def _choose(self, session_id: str | None) -> Seat | None:
        own = self._sessions.get(session_id) if session_id is not None else None
        if own is not None and self._has_room(own):
            return own
        best = None
        for seat in self._seats.values():
            if self._has_room(seat) and (best is None or seat.in_flight < best.in_flight):
                best = seat
        return best

    def _has_room(self, seat: Seat) -> bool:
        return seat.is_open and seat.in_flight < self._concurrency

    async def _wait(self, session_id: str | None) -> Seat:
        """A seat on which one request is counted already: it is handed over, so that nobody can get
        in between."""
        if self._lost is not None:
            raise EngineError(str(self._lost)) from self._lost
        future: asyncio.Future[Seat] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, session_id))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.give_back(future.result())
            raise

    def _remember(self, session_id: str, seat: Seat) -> None:
        self._sessions[session_id] = seat
        self._sessions.move_to_end(session_id)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)


class _Lease:
    """`async with` it: one request at the engine whose address it gives. A class, because a
    generator costs three times as much, and every request has one."""

    __slots__ = ("_busy", "_leases", "_seat", "_session_id")

    def __init__(self, leases: Leases, session_id: str | None) -> None:
        self._leases, self._session_id = leases, session_id

    async def __aenter__(self) -> str:
        self._seat = await self._leases.take(self._session_id)
        try:
            self._busy = self._seat.meter.busy()
            self._busy.__enter__()
        except BaseException:
            self._leases.give_back(self._seat)
            raise
        return self._seat.endpoint

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._busy.__exit__(kind, error, trace)
        finally:
            self._leases.give_back(self._seat)
