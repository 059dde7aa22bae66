"""SGLang's router itself, over scripted servers: what a run relies on in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs.schema import RolloutConfig
from pipeline.core.errors import RefusedRequestError
from pipeline.core.types import VersionSpan
from stages.engine.elastic import ElasticPool
from stages.engine.gateway import Gateway
from stages.engine.gateway_pool import GatewayPool
from stages.generate.client import SGLangClient
from stages.generate.through_router import ThroughRouter
from tests.unit.fake_sglang import FakeSGLang, answer, says
from tests.unit.stages.engine.test_pool import FakeEngine

pytest.importorskip("sglang_router")
PARAMS = {"max_new_tokens": 8, "temperature": 1.0, "sampling_seed": 7}
# the router spreads sessions by a hash of addresses: that all of so many fall on one of two engines
# has a chance of one in eight thousand
NUM_SESSIONS = 14


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def gateway(folder: Path, **more: Any) -> AsyncIterator[Gateway]:
    made = Gateway(
        **{
            "policy": "consistent_hashing",
            "log_path": folder / "router.log",
            "timeout_seconds": 60.0,
            **more,
        }
    )
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@asynccontextmanager
async def servers(count: int = 2, **more: Any) -> AsyncIterator[list[FakeSGLang]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(FakeSGLang(**more).running()) for _ in range(count)]


@asynccontextmanager
async def client_of(
    through: Gateway, engines: list[FakeSGLang], headers: dict[str, str] | None = None
) -> AsyncIterator[tuple[SGLangClient, ElasticPool, GatewayPool]]:
    fakes = [FakeEngine(i) for i in range(len(engines))]
    for fake, engine in zip(fakes, engines, strict=True):
        fake.endpoint = engine.url
    pool = ElasticPool(fakes, concurrency=32, max_restarts=0, start_timeout_seconds=1.0)
    await pool.start()
    behind = GatewayPool(pool, through, concurrency=32, max_restarts=1, headers=headers or {})
    await behind.start()
    rollout = RolloutConfig(generate_timeout_seconds=60.0)
    try:
        async with SGLangClient(
            behind, rollout, router=ThroughRouter(behind), headers=headers
        ) as client:
            yield client, pool, behind
    finally:
        await behind.close()


async def test_requests_arrive_with_all_that_they_need_and_sessions_stay(tmp_path: Path) -> None:
    async with servers() as engines, gateway(tmp_path) as through:
        async with client_of(through, engines) as (client, _, _):
            for session in range(6):
                for _ in range(4):
                    done = await client.generate([session], PARAMS, session_id=f"s{session}")
                    assert done.spans == (VersionSpan(0, 0, 3),)
            with pytest.raises(RefusedRequestError, match="logit_bias"):
                await client.generate([1], {**PARAMS, "logit_bias": {"1": 2.0}})
        seen = [request for engine in engines for request in engine.requests]
        assert len(seen) == 24
        for request in seen:
            assert request["return_logprob"] is True
            assert request["extra_key"] == "0" and request["rid"]
            assert {k: request["sampling_params"][k] for k in PARAMS} == PARAMS
        sessions = [{request["input_ids"][0] for request in engine.requests} for engine in engines]
        assert sessions[0] | sessions[1] == set(range(6)) and not sessions[0] & sessions[1]


async def test_an_engine_that_is_pushed_gets_nothing_new_and_what_it_has_ends(
    tmp_path: Path,
) -> None:
    let = asyncio.Event()

    async def waits(request: dict[str, Any]) -> Any:
        await let.wait()
        return await says()(request)

    async with (
        servers(script=[waits]) as engines,
        gateway(tmp_path) as through,
        client_of(through, engines) as (client, pool, behind),
    ):
        first = [
            asyncio.create_task(client.generate([i], PARAMS, session_id=str(i)))
            for i in range(NUM_SESSIONS)
        ]
        await eventually(lambda: sum(len(engine.requests) for engine in engines) == NUM_SESSIONS)
        pushed, other = engines
        assert pushed.requests and other.requests  # by their sessions
        before = len(pushed.requests)
        pool.begin_push(pushed.url)
        await eventually(lambda: pushed.url not in behind.sent)
        let.set()
        for i in range(NUM_SESSIONS):
            await client.generate([i], PARAMS, session_id=str(i))
        assert len(pushed.requests) == before
        await asyncio.gather(*first)
        pool.end_push(pushed.url, 0)
        await eventually(lambda: pushed.url in behind.sent)
        for i in range(NUM_SESSIONS):
            await client.generate([i], PARAMS, session_id=str(i))
        assert len(pushed.requests) > before  # and sessions are back where they were


async def test_the_key_reaches_engines_and_aborts_reach_all_of_them(tmp_path: Path) -> None:
    async def hangs(request: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    headers = {"Authorization": "Bearer sesame"}
    async with (
        servers(script=[hangs], key="sesame") as engines,
        gateway(tmp_path, api_key="sesame") as through,
        client_of(through, engines, headers) as (client, _, _),
    ):
        task = asyncio.create_task(client.generate([1], PARAMS))
        await eventually(lambda: any(engine.requests for engine in engines))
        task.cancel()
        async with asyncio.timeout(60):
            for engine in engines:
                await engine.abort_seen.wait()


async def test_a_router_that_is_killed_comes_back_and_the_request_is_answered(
    tmp_path: Path,
) -> None:
    async with (
        servers(script=[says(answer())]) as engines,
        gateway(tmp_path) as through,
        client_of(through, engines) as (client, _, _),
    ):
        await client.generate([1], PARAMS)
        assert through._process is not None
        pid = through._process.pid
        psutil.Process(pid).kill()
        await client.generate([2], PARAMS)
        assert through._process.pid != pid


async def test_it_listens_on_loopback_alone_and_leaves_nothing(tmp_path: Path) -> None:
    async with gateway(tmp_path) as through:
        assert through._process is not None
        process = psutil.Process(through._process.pid)
        listening = [c for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
        assert listening and {c.laddr.ip for c in listening} == {"127.0.0.1"}
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
