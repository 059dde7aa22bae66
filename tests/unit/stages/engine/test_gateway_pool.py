"""A pool behind SGLang's router, which is only pretended (the real one:
tests/integration/engine/test_gateway.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pipeline.core.errors import EngineError
from stages.engine.elastic import ElasticPool
from stages.engine.gateway import Worker
from stages.engine.gateway_pool import GatewayPool
from tests.unit.fake_sglang import FakeSGLang
from tests.unit.stages.engine.test_pool import FakeEngine, Holder, until


class FakeGateway:
    url = "http://127.0.0.1:29999"

    def __init__(self) -> None:
        self.alive = False
        self.has: set[str] = set()
        self.starts = 0
        self.refuses = 0
        self.let = asyncio.Event()
        self.let.set()

    async def start(self) -> None:
        self.alive, self.has, self.starts = True, set(), self.starts + 1

    async def add(self, endpoint: str) -> None:
        await self._order()
        self.has.add(endpoint)

    async def remove(self, endpoint: str) -> None:
        await self._order()
        self.has.discard(endpoint)

    async def _order(self) -> None:
        await self.let.wait()
        if self.refuses or not self.alive:
            self.refuses -= 1
            raise EngineError("it is behind")

    async def workers(self) -> dict[str, Worker]:
        return {endpoint: Worker(id="1", load=3) for endpoint in self.has}

    def kill(self) -> None:
        self.alive = False

    async def stop(self) -> None:
        self.kill()


@asynccontextmanager
async def up(
    count: int = 2, concurrency: int = 4, restarts: int = 1
) -> AsyncIterator[tuple[GatewayPool, ElasticPool, list[FakeEngine], FakeGateway]]:
    engines, gateway = [FakeEngine(i) for i in range(count)], FakeGateway()
    pool = ElasticPool(
        engines,
        concurrency=1,
        max_restarts=1,
        start_timeout_seconds=1.0,
        sleep=lambda seconds: asyncio.sleep(0),
    )
    await pool.start()
    behind = GatewayPool(pool, gateway, concurrency=concurrency, max_restarts=restarts, headers={})
    await behind.start()
    try:
        yield behind, pool, engines, gateway
    finally:
        await behind.close()
        await pool.close()


async def test_the_router_has_those_engines_that_are_open() -> None:
    async with up() as (behind, pool, (one, two), gateway):
        assert gateway.has == {one.endpoint, two.endpoint}
        assert tuple(behind.endpoints) == (gateway.url,)
        assert tuple(behind.engines) == (one.endpoint, two.endpoint)
        pool.begin_push(one.endpoint)
        await until(lambda: gateway.has == {two.endpoint})
        pool.end_push(one.endpoint, 3)
        await until(lambda: gateway.has == {one.endpoint, two.endpoint})
        assert behind.version_of(gateway.url) == 0  # two may answer as well
        pool.end_push(two.endpoint, 3)
        assert behind.version_of(gateway.url) == 3


async def test_requests_wait_while_no_engine_is_open() -> None:
    async with up(count=1, concurrency=2) as (behind, pool, (one,), gateway):
        pool.begin_push(one.endpoint)
        await until(lambda: not gateway.has)
        held = Holder(behind)  # type: ignore[arg-type]
        for name in "abc":
            await held.take(name)
        assert not held.granted
        pool.end_push(one.endpoint, 1)
        await until(lambda: len(held.granted) == 2)  # the third is more than there may be
        assert {endpoint for _, endpoint in held.granted} == {gateway.url}
        await held.give_all()


async def test_a_failure_is_looked_for_at_every_engine_once_for_all_requests() -> None:
    async with up() as (behind, _, (one, two), gateway):
        two.alive = False
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(behind.report_failure(gateway.url, ConnectionError("reset")))
        assert one.probes == [False]
        await until(lambda: two.starts == [0, 0] and gateway.has == {one.endpoint, two.endpoint})


async def test_a_dead_router_is_started_again_with_its_engines_and_given_up_at_last() -> None:
    async with up(restarts=1) as (behind, _, (one, two), gateway):
        gateway.kill()
        await behind.report_failure(gateway.url, ConnectionError("reset"))
        await until(lambda: gateway.has == {one.endpoint, two.endpoint})
        assert gateway.starts == 2
        gateway.kill()
        await behind.report_failure(gateway.url, ConnectionError("reset"))
        with pytest.raises(EngineError, match="router is given up after 1 restarts"):
            async with behind.lease():
                pass


async def test_a_router_that_is_behind_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.engine.gateway_pool.RETRY_SECONDS", 0.0)
    async with up() as (_, pool, (one, two), gateway):
        gateway.refuses = 2
        pool.begin_push(one.endpoint)
        await until(lambda: gateway.has == {two.endpoint})


async def test_an_engine_is_drained_when_the_router_has_let_go_and_it_says_so_itself() -> None:
    async with FakeSGLang(server={"loads": [{"num_running_reqs": 0}]}).running() as server:
        engine, gateway = FakeEngine(0), FakeGateway()
        engine.endpoint = server.url
        pool = ElasticPool([engine], concurrency=1, max_restarts=0, start_timeout_seconds=1.0)
        await pool.start()
        behind = GatewayPool(pool, gateway, concurrency=1, max_restarts=0, headers={})
        await behind.start()
        gateway.let.clear()
        pool.begin_push(server.url)
        draining = asyncio.create_task(pool.drained(server.url))
        # the engine has nothing, and the router may still send it something
        assert not (await asyncio.wait({draining}, timeout=0.3))[0]
        server.server["loads"] = [{"num_running_reqs": 0, "num_waiting_reqs": 1}]
        gateway.let.set()
        await until(lambda: not gateway.has)
        assert not (await asyncio.wait({draining}, timeout=0.3))[0]
        server.server["loads"] = [{"num_running_reqs": 0, "num_waiting_reqs": 0}]
        async with asyncio.timeout(60):
            await draining
        await behind.close()
        await pool.close()


async def test_figures_are_what_the_router_counts() -> None:
    async with up() as (_, pool, _, _):
        await until(lambda: pool.statistics().num_in_flight == (3, 3))
