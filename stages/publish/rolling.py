"""What all transports have in common: a push rolls over the pool, one engine after the other, so
that generation never stops.

Per engine: close its gate to new requests, pause it between two decode steps, change the weights,
read back the version, continue. An engine is never left paused, and never serves weights of no
version: one whose weights were touched by a push that then failed is ended and started again, and
comes back with the current weights (`resync`)."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

import aiohttp

from configs.schema import ClusterConfig
from pipeline.core.errors import WeightSyncError
from pipeline.core.protocols import EnginePool
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import PushResult
from stages.publish.control import EngineControl

logger = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 3  # at one engine, within one push
RETRY_SECONDS = 0.5  # before the second attempt; doubles
FLUSH_ATTEMPTS = 5


class PushPool(EnginePool, Protocol):
    """A pool whose engines can be taken out of service for a push."""

    on_restart: Callable[[str], Awaitable[None]] | None  # a transport sets this to its `resync`

    def begin_push(self, endpoint: str) -> None:
        """Lets no new requests to this engine from here on."""

    def end_push(self, endpoint: str, version: int | None) -> None:
        """Lets requests in again. `version`: what the engine confirmed; None: what it had."""

    async def settled(self, endpoint: str) -> bool:
        """Waits while the engine restarts; False when it is lost for good."""

    def condemn(self, endpoint: str, reason: str) -> None:
        """Ends the engine now and starts it again."""

    def is_up(self, endpoint: str) -> bool:
        """Was the engine started, and not condemned since? One that `resync` works on is up
        already."""


class RefusedError(WeightSyncError):
    """The engine did not take the weights and is known to hold its old ones, all of them."""


class RollingTransport(ABC):
    """`WeightTransport`.

    A subclass says how weights are staged once, and how one paused engine gets them.
    """

    def __init__(
        self,
        pool: PushPool,
        cluster: ClusterConfig,
        *,
        headers: Mapping[str, str] | None = None,
        time: TimeSource | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`headers`: of every request to an engine."""
        self._pool, self._cluster, self._headers = pool, cluster, headers
        self._time: TimeSource = time or MonotonicTime()
        self._sleep = sleep
        self._session: aiohttp.ClientSession | None = None
        self._lock = asyncio.Lock()  # staging and every single update: none sees another half done
        self._staged: int | None = None  # the version that is staged
        self._delivered: set[str] = set()  # engines that hold what is staged
        self._stall_seconds: dict[str, float] = {}
        pool.on_restart = self.resync

    async def push(self, policy_version: int) -> PushResult:
        """See WeightTransport.

        Engines that the pool has lost for good are left out, unless all are.
        """
        began = self._time.now()
        async with self._lock:
            num_bytes = await self._stage(policy_version)
            self._staged, self._delivered, self._stall_seconds = policy_version, set(), {}
        failures = []
        for endpoint in self._pool.endpoints:
            try:
                await self._deliver(endpoint)
            except WeightSyncError as error:
                failures.append(error)
        if failures or not self._delivered:
            what = "; ".join(map(str, failures)) or "no engine is left"
            raise WeightSyncError(
                f"policy version {policy_version} did not reach every engine: {what}"
            )
        await self._all_delivered()
        return PushResult(
            policy_version=policy_version,
            seconds=self._time.now() - began,
            stall_seconds=max(self._stall_seconds.values(), default=0.0),
            num_bytes=num_bytes,
            num_engines=len(self._delivered),
        )

    async def resync(self, endpoint: str) -> None:
        """Brings one engine that has just restarted to the weights of the last push; before the
        first push there is nothing to do. `SGLangPool.on_restart` wants this. Raises
        WeightSyncError."""
        async with self._lock:
            self._delivered.discard(endpoint)
            await self._forget(endpoint)
            if self._staged is not None:
                await self._update(endpoint, self._staged)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @abstractmethod
    async def _stage(self, version: int) -> int:
        """Takes the learner's weights as they are now; returns how many bytes they have."""

    @abstractmethod
    async def _connect(self, control: EngineControl) -> None:
        """Does what can be done while the engine still generates."""

    @abstractmethod
    async def _load(self, control: EngineControl, version: int) -> None:
        """Brings the staged weights to one paused engine. Raises RefusedError when the engine still
        holds its old ones; after any other failure it may hold some of both, and is ended."""

    async def _forget(self, endpoint: str) -> None:  # noqa: B027
        """The engine's process is a new one: what was agreed with the old one is void."""

    async def _all_delivered(self) -> None:  # noqa: B027
        """Does every engine hold what is staged?"""

    def _control(self, endpoint: str) -> EngineControl:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True), headers=self._headers
            )
        return EngineControl(self._session, endpoint)

    async def _deliver(self, endpoint: str) -> None:
        """Tries until this engine holds what is staged, or its attempts are used up.

        Meanwhile it may restart and be resynced."""
        assert self._staged is not None
        for attempt in range(ATTEMPTS):
            if not await self._pool.settled(endpoint):
                logger.warning(
                    "policy version %d leaves out %s, which is lost for good",
                    self._staged,
                    endpoint,
                )
                return
            async with self._lock:
                if endpoint in self._delivered:
                    return
                try:
                    await self._update(endpoint, self._staged)
                    return
                except WeightSyncError as error:
                    failure = error
            logger.warning(
                "push of version %d, attempt %d of %d: %s",
                self._staged,
                attempt + 1,
                ATTEMPTS,
                failure,
            )
            await self._pool.report_failure(endpoint, failure)
            if attempt + 1 < ATTEMPTS:
                await self._sleep(RETRY_SECONDS * 2**attempt)
        stays = (
            f"{endpoint} stays at version {self._pool.version_of(endpoint)} after {ATTEMPTS}"
            " attempts"
        )
        raise WeightSyncError(f"{stays}: {failure}") from failure

    async def _update(self, endpoint: str, version: int) -> None:
        """Updates one engine once.

        Whatever happens, the gate is open afterwards, and the engine goes on or is ended."""
        control = self._control(endpoint)
        await self._connect(control)
        confirmed: int | None = None
        self._pool.begin_push(endpoint)
        paused = self._time.now()
        try:
            try:
                await self._pause(control)
                await self._replace(control, version)
            finally:
                await shielded(self._resume(control))
            confirmed = version
            self._delivered.add(endpoint)
        finally:
            self._stall_seconds[endpoint] = self._time.now() - paused
            self._pool.end_push(endpoint, confirmed)

    async def _replace(self, control: EngineControl, version: int) -> None:
        try:
            await self._load(control, version)
            if (got := await control.version()) != version:
                raise WeightSyncError(
                    f"{control.endpoint} says version {got} after it was given {version}"
                )
        except RefusedError:
            raise
        except BaseException as error:  # cancellation too: nobody knows how much of it arrived
            self._pool.condemn(
                control.endpoint, f"its weights are of no version ({error or type(error).__name__})"
            )
            raise

    async def _pause(self, control: EngineControl) -> None:
        """Pauses the engine. Under `retract` this also empties its cache, which is done first,
        while a refusal has no consequences: a refused cache flush takes the server down when it is
        part of the update itself."""
        mode = self._cluster.weight_update_mode
        await control.pause(mode)
        for attempt in range(FLUSH_ATTEMPTS if mode == "retract" else 0):
            try:
                return await control.flush_cache()
            except WeightSyncError:
                if attempt + 1 == FLUSH_ATTEMPTS:
                    raise
                await control.resume()  # a step that was under way has to end
                await self._sleep(RETRY_SECONDS)
                await control.pause(mode)

    async def _resume(self, control: EngineControl) -> None:
        """Lets the engine go on. One that was ended needs nothing; one that cannot be made to go on
        is ended."""
        for attempt in range(ATTEMPTS if self._pool.is_up(control.endpoint) else 0):
            try:
                return await control.resume()
            except WeightSyncError as error:
                if attempt + 1 == ATTEMPTS:
                    self._pool.condemn(
                        control.endpoint, f"it could not be made to go on after a push ({error})"
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
