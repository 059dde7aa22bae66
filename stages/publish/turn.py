"""One engine's turn in a push: its gate closes, it pauses, its weights are replaced, it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from pipeline.core.errors import WeightSyncError
from pipeline.core.protocols import EnginePool
from pipeline.core.time import TimeSource
from stages.publish.control import EngineControl

T = TypeVar("T")

RESUME_ATTEMPTS = 3
FLUSH_ATTEMPTS = 5
RETRY_SECONDS = 0.5


class PushPool(EnginePool, Protocol):
    """A pool whose engines can be taken out of service for a push."""

    # a transport sets these, to its `resync` and its `part`
    on_restart: Callable[[str], Awaitable[None]] | None
    on_leave: Callable[[str, Callable[[], None]], Awaitable[None]] | None

    def begin_push(self, endpoint: str) -> None:
        """Lets no new requests to this engine from here on."""

    async def drained(self, endpoint: str) -> None:
        """Waits until no request is in flight at this engine."""

    def end_push(self, endpoint: str, version: int | None) -> None:
        """Lets requests in again. `version`: what the engine confirmed; None: what it had."""

    async def settled(self, endpoint: str) -> bool:
        """Waits while the engine restarts; False when it is lost for good."""

    def condemn(self, endpoint: str, reason: str) -> None:
        """Ends the engine now and starts it again."""

    def is_up(self, endpoint: str) -> bool:
        """Was the engine started, and not condemned since? One that `resync` works on is up
        already."""


class Turn:
    """However it ends, the gate is open afterwards, and the engine goes on with the new weights or
    with the old ones, or is ended and started again: one whose weights are of no version never goes
    on. But one that is `held` stays as it is, paused, for the turn after it."""

    def __init__(
        self,
        pool: PushPool,
        control: EngineControl,
        mode: str,
        time: TimeSource,
        sleep: Callable[[float], Awaitable[None]],
        *,
        before: Turn | None = None,
    ) -> None:
        """`mode`: --weight-update-mode. `before`: the turn in which the engine was held."""
        self._pool, self._mode, self._time, self._sleep = pool, mode, time, sleep
        self.control, self.endpoint = control, control.endpoint
        self.confirmed: int | None = None  # the version that the engine says it has
        self.mixed = False  # some of its weights may be new and some old
        self.updating = False  # it was told that an update begins, and not yet that it ended
        self.error: WeightSyncError | None = None
        self.stall_seconds = 0.0
        self.held = False  # the learner was lost: whoever comes next gives it everything
        self._paused_at: float | None = None
        self._ended = False
        if before is not None:
            self.mixed, self.updating = before.mixed, before.updating
            self._paused_at = before._paused_at

    async def begin(self) -> None:
        """Closes the gate and pauses the engine.

        Raises WeightSyncError; `end` is to be called all the same."""
        if self._paused_at is not None:  # since the turn before
            return
        self._pool.begin_push(self.endpoint)
        if self._mode == "drain":
            await self._pool.drained(self.endpoint)
        self._paused_at = self._time.now()
        await self._pause()

    async def open(self) -> None:
        """Tells the engine that an update begins; one that was told so before is not told again."""
        if not self.updating:
            await self.control.begin_update()
            self.updating = True

    async def close(self) -> None:
        await self.control.end_update()
        self.updating = False

    async def confirm(self, version: int) -> None:
        """Reads back the version."""
        if (got := await self.control.version()) != version:
            raise WeightSyncError(
                f"{self.endpoint} says version {got} after it was given {version}"
            )
        self.confirmed, self.mixed = version, False

    async def end(self) -> None:
        """Lets the engine go on, or ends it. A second call does nothing. Raises WeightSyncError
        when it could not be made to go on, and is ended for that."""
        if self._ended or (self.held and self._pool.is_up(self.endpoint)):
            return
        self._ended = True
        confirmed, self.confirmed = self.confirmed, None
        try:
            if self.mixed:
                self._pool.condemn(
                    self.endpoint, f"its weights are of no version ({self.error or 'called off'})"
                )
            await self._resume()
            self.confirmed = confirmed
        finally:
            if self._paused_at is not None:
                self.stall_seconds = self._time.now() - self._paused_at
            self._pool.end_push(self.endpoint, self.confirmed)

    @property
    def wants_more(self) -> bool:
        """Is there sense in giving it everything again? Not when it refused and keeps its old
        weights, nor when it was ended."""
        if self.confirmed is not None or not self._pool.is_up(self.endpoint):
            return False
        return self.mixed or self.error is None

    async def _pause(self) -> None:
        """`retract` also empties the cache, which is done first, while a refusal has no
        consequences: a refused cache flush takes the server down when it is part of the update
        itself. `drain` has nothing left to retract."""
        mode = "in_place" if self._mode == "in_place" else "retract"
        await self.control.pause(mode)
        for attempt in range(FLUSH_ATTEMPTS if mode == "retract" else 0):
            try:
                return await self.control.flush_cache()
            except WeightSyncError:
                if attempt + 1 == FLUSH_ATTEMPTS:
                    raise
                await self.control.resume()  # a step that was under way has to end
                await self._sleep(RETRY_SECONDS)
                await self.control.pause(mode)

    async def _resume(self) -> None:
        """One that was ended needs nothing; one that cannot be made to go on is ended."""
        for attempt in range(RESUME_ATTEMPTS if self._pool.is_up(self.endpoint) else 0):
            try:
                if self.updating and not self.mixed:
                    await self.close()  # nothing came of it; the next one would be refused
                return await self.control.resume()
            except WeightSyncError as error:
                if attempt + 1 == RESUME_ATTEMPTS:
                    self._pool.condemn(
                        self.endpoint, f"it could not be made to go on after a push ({error})"
                    )
                    raise
                await self._sleep(RETRY_SECONDS)


async def shielded(work: Awaitable[T]) -> T:
    """Runs to its end even if the caller is cancelled meanwhile; the cancellation is raised
    afterwards."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
