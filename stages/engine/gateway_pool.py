"""A pool whose requests go through SGLang's router, which chooses the engine.

Which engine answers is not known; what must be known does not need it. An answer says which
versions sampled it. A request is filed in the radix cache under the oldest version that any engine
serves: an answer that is newer and was computed on cached KV is asked again
(`stages/generate/client.py`). An engine that is being pushed, restarted or drained is taken out of
the router, and put back after."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field

import aiohttp

from pipeline.core.errors import EngineError
from stages.engine.external_calls import call
from stages.engine.gateway import Gateway
from stages.engine.leases import Leases
from stages.engine.pool import SGLangPool
from stages.engine.view import PoolView

logger = logging.getLogger(__name__)

WHO = "router"  # in the pool's count of who has requests in flight
COUNT_SECONDS = 0.5  # between looks at how many requests each engine has
RETRY_SECONDS = 1.0
POLL_SECONDS = 0.1


@dataclass(slots=True, eq=False)
class _Seat:
    """The router, as the one engine that is leased."""

    endpoint: str
    is_open: bool = False
    in_flight: int = 0
    emptied: asyncio.Event = field(default_factory=asyncio.Event)
    meter: _NoMeter = field(default_factory=lambda: _NoMeter())


class _NoMeter:
    """The engines' own meters are told what the router counts."""

    def busy(self) -> nullcontext[None]:
        return nullcontext()


class GatewayPool:
    """`EnginePool` with one endpoint, and `view.Elsewhere`: it follows what the pool says is
    open."""

    def __init__(
        self,
        pool: SGLangPool,
        gateway: Gateway,
        *,
        concurrency: int,
        max_restarts: int,
        headers: dict[str, str],
    ) -> None:
        """`concurrency`: requests in flight at most, over all engines. `max_restarts`: of the
        router."""
        self._pool, self._gateway = pool, gateway
        self._max_restarts, self._headers = max_restarts, headers
        self._seat = _Seat(gateway.url)
        self._leases = Leases({gateway.url: self._seat}, concurrency)
        self._wanted: set[str] = set()
        self.sent: set[str] = set()
        """Engines that the router sends requests to."""
        self._news, self._moved = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._check: asyncio.Task[None] | None = None
        self._num_restarts = 0
        pool.elsewhere = self

    async def start(self) -> None:
        """Call it when the pool is up; returns when every engine of it is in the router."""
        await self._gateway.start()
        self.follow(self._pool.view())
        await self._agree()
        self._tasks = [
            asyncio.create_task(self._keep(), name="keep SGLang's router in step"),
            asyncio.create_task(self._count(), name="count SGLang's router's requests"),
        ]

    async def close(self) -> None:
        """It may be called more than once, and without `start`."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._leases.fail(EngineError("SGLang's router was closed"))
        await self._gateway.stop()

    def kill_now(self) -> None:
        self._gateway.kill()

    # -- EnginePool --------------------------------------------------------------------------------

    @property
    def endpoints(self) -> Sequence[str]:
        return (self._seat.endpoint,)

    @property
    def engines(self) -> Sequence[str]:
        """Behind the router: who may have a request that is to be aborted."""
        return self._pool.endpoints

    def lease(self, session_id: str | None = None) -> AbstractAsyncContextManager[str]:
        return self._leases.lease(None)

    def version_of(self, endpoint: str) -> int:
        """The oldest that may answer."""
        return min(self._pool.version_of(engine) for engine in self._pool.endpoints)

    async def report_failure(self, endpoint: str, error: Exception) -> None:
        """Nobody knows whose failure it was: all are asked, once for all requests that failed."""
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._look(error))
        await asyncio.shield(self._check)

    # -- Elsewhere ---------------------------------------------------------------------------------

    def follow(self, view: PoolView) -> None:
        self._wanted = {engine.endpoint for engine in view.engines if engine.is_open}
        lost = [engine.lost for engine in view.engines if engine.lost is not None]
        if lost and len(lost) == len(view.engines):
            self._leases.fail(EngineError(f"no engine is left. The last to go: {lost[-1]}"))
        self._news.set()

    async def drained(self, endpoint: str) -> None:
        """Returns when the router sends nothing there and the engine has no request."""
        while endpoint in self.sent:
            self._moved.clear()
            await self._moved.wait()
        async with aiohttp.ClientSession(headers=self._headers) as session:
            while self._pool.is_up(endpoint):
                num = await _num_requests(session, endpoint)
                if num == 0:
                    return
                await asyncio.sleep(POLL_SECONDS)

    # -- inside ------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            await self._news.wait()
            try:
                await self._agree()
            except (EngineError, TimeoutError) as error:
                logger.warning("SGLang's router is behind: %s", error)
                await self._revive_if_dead(error)
                await asyncio.sleep(RETRY_SECONDS)
                self._news.set()

    async def _agree(self) -> None:
        """The router sends requests to those engines that are open, and to no other."""
        self._news.clear()
        while self.sent != self._wanted:
            for endpoint in self.sent - self._wanted:
                await self._gateway.remove(endpoint)
                self._now_sent(self.sent - {endpoint})
            for endpoint in self._wanted - self.sent:
                await self._gateway.add(endpoint)
                self._now_sent(self.sent | {endpoint})

    def _now_sent(self, endpoints: set[str]) -> None:
        self.sent = endpoints
        self._seat.is_open = bool(endpoints)
        self._moved.set()
        self._leases.hand_out()

    async def _look(self, error: Exception) -> None:
        await self._revive_if_dead(error)
        async with asyncio.TaskGroup() as group:
            for endpoint in self._pool.endpoints:
                group.create_task(self._pool.report_failure(endpoint, error))

    async def _revive_if_dead(self, error: Exception) -> None:
        if self._gateway.alive:
            return
        self._now_sent(set())
        if self._num_restarts >= self._max_restarts:
            given_up = f"SGLang's router is given up after {self._num_restarts} restarts: {error}"
            return self._leases.fail(EngineError(given_up))
        self._num_restarts += 1
        logger.warning("SGLang's router has died and is started again (%s)", error)
        await self._gateway.start()
        self._news.set()

    async def _count(self) -> None:
        """What the router has in flight at each engine, for the figures."""
        while True:
            with contextlib.suppress(EngineError):
                workers = await self._gateway.workers()
                loads = {endpoint: worker.load for endpoint, worker in workers.items()}
                gone = dict.fromkeys(self._pool.endpoints, 0)
                self._pool.count_elsewhere(WHO, gone | loads)
            await asyncio.sleep(COUNT_SECONDS)


async def _num_requests(session: aiohttp.ClientSession, endpoint: str) -> int:
    """What the engine itself says; 0 where it says nothing any more."""
    try:
        said = await call(session, "GET", f"{endpoint}/v1/loads?include=core", 10.0)
    except EngineError:
        return 0
    return sum(
        int(load.get("num_running_reqs") or 0) + int(load.get("num_waiting_reqs") or 0)
        for load in said.get("loads", ())
    )
