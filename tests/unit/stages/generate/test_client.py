"""The HTTP client of the engines against a scripted server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from configs.schema import RolloutConfig
from pipeline.core.engine_auth import engine_headers
from pipeline.core.errors import EngineError, ForgottenWeightsError
from pipeline.core.types import VersionSpan
from stages.generate.answers import shift_boundaries
from stages.generate.client import BACKOFF_MAX_SECONDS, SGLangClient
from stages.generate.through_router import ROUTING_HEADER, ThroughRouter
from tests.unit.fake_sglang import FakePool, FakeSGLang, Step, answer, drops, says

KEY = {"api_key": "sesame"}
PARAMS = {"max_new_tokens": 8, "temperature": 1.0}


class Naps:
    """Sleeps that are only written down."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def client_of(
    pool: FakePool,
    naps: Naps | None = None,
    *,
    retries: int = 3,
    timeout: float = 30.0,
    **more: Any,
) -> SGLangClient:
    config = RolloutConfig(generate_max_retries=retries, generate_timeout_seconds=timeout)
    return SGLangClient(pool, config, sleep=naps or Naps(), rng=random.Random(0), **more)


@asynccontextmanager
async def served(
    *script: Step, retries: int = 3, naps: Naps | None = None
) -> AsyncIterator[tuple[SGLangClient, FakeSGLang]]:
    """A client of one scripted server at version 0."""
    async with (
        FakeSGLang(list(script)).running() as server,
        client_of(FakePool([server.url]), naps, retries=retries) as client,
    ):
        yield client, server


async def hangs(request: dict[str, Any]) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def test_an_answer_is_taken_apart() -> None:
    async with FakeSGLang(
        [says(answer((7, 8, 9), spans=[(3, 0, 2), (4, 2, 3)], cached=5, finish="length"))]
    ).running() as server:
        pool = FakePool([server.url], [3])
        async with client_of(pool) as client:
            done = await client.generate([1, 2], PARAMS, session_id="s")
    assert done.token_ids == (7, 8, 9)
    assert done.log_probs == (-0.25, -0.5, -0.75)
    assert done.spans == (VersionSpan(3, 0, 2), VersionSpan(4, 2, 3))
    assert (done.finish_reason, done.cached_tokens, done.text) == ("length", 5, "\x07\x08\t")
    request = server.requests[0]
    assert request["input_ids"] == [1, 2] and request["sampling_params"] == PARAMS
    assert request["return_logprob"] is True and request["extra_key"] == "3"
    assert pool.sessions == ["s"]


async def test_every_version_has_a_cache_key_of_its_own() -> None:
    script = [says(), says(answer(spans=[(1, 0, 3)]))]
    async with FakeSGLang(script).running() as server:
        pool = FakePool([server.url], [0])
        async with client_of(pool) as client:
            await client.generate([1], PARAMS)
            pool.versions[server.url] = 1
            await client.generate([1], PARAMS)
    assert [r["extra_key"] for r in server.requests] == ["0", "1"]


async def test_server_errors_are_retried_with_growing_pauses_up_to_the_limit() -> None:
    naps = Naps()
    async with FakeSGLang(
        [says({}, 503), says({}, 500), says({}, 429), says()]
    ).running() as server:
        pool = FakePool([server.url])
        async with client_of(pool, naps) as client:
            assert (await client.generate([1], PARAMS)).token_ids == (65, 66, 67)
            assert client.statistics.retries == 3
    assert len({r["rid"] for r in server.requests}) == 4  # a request given up may still be running
    assert (
        0.125 <= naps.seconds[0] <= 0.25
        and 0.25 <= naps.seconds[1] <= 0.5
        and 0.5 <= naps.seconds[2] <= 1.0
    )
    assert not pool.reported  # the engine answered: it is not dead


async def test_used_up_retries_say_so() -> None:
    naps = Naps()
    async with served(says({"error": "busy"}, 503), retries=2, naps=naps) as (client, server):
        with pytest.raises(EngineError, match=r"failed 3 times.*503.*busy.*--generate-max-retries"):
            await client.generate([1], PARAMS)
    assert len(server.requests) == 3 and len(naps.seconds) == 2


async def test_a_refused_request_is_not_asked_again() -> None:
    async with served(says({"error": {"message": "input too long"}}, 400)) as (client, server):
        with pytest.raises(EngineError, match=r"400.*input too long"):
            await client.generate([1], PARAMS)
    assert len(server.requests) == 1


async def test_a_broken_connection_is_reported_and_the_request_goes_elsewhere() -> None:
    async with FakeSGLang([drops]).running() as bad, FakeSGLang().running() as good:
        pool = FakePool([bad.url, good.url])
        async with client_of(pool) as client:
            assert (await client.generate([1], PARAMS)).token_ids == (65, 66, 67)
    assert [url for url, _ in pool.reported] == [bad.url]
    assert len(bad.requests) == len(good.requests) == 1


async def test_an_engine_that_is_gone_is_reported() -> None:
    async with FakeSGLang().running() as server:
        gone = server.url
    async with FakeSGLang().running() as good:
        pool = FakePool([gone, good.url])
        async with client_of(pool) as client:
            await client.generate([1], PARAMS)
    assert [url for url, _ in pool.reported] == [gone]


async def test_a_deadline_ends_the_request_on_both_sides() -> None:
    async with FakeSGLang([hangs, says()]).running() as server:
        pool = FakePool([server.url])
        pool.stay_healthy = True
        async with client_of(pool, timeout=0.1) as client:
            assert (await client.generate([1], PARAMS)).token_ids == (65, 66, 67)
            await server.abort_seen.wait()
    assert isinstance(pool.reported[0][1], TimeoutError)
    assert server.aborted == [server.requests[0]["rid"]]


async def test_cancellation_aborts_the_request_at_the_engine() -> None:
    async with FakeSGLang([hangs]).running() as server:
        pool = FakePool([server.url])
        async with client_of(pool) as client:
            task = asyncio.create_task(client.generate([1], PARAMS))
            await server.received.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        # close() has waited for the abort
        assert server.aborted == [server.requests[0]["rid"]]
    assert not pool.reported


async def test_kv_of_older_weights_is_found_out_and_avoided() -> None:
    stale = says(answer(spans=[(1, 0, 3)], cached=4))
    naps = Naps()
    async with served(stale, says(answer(spans=[(1, 0, 3)])), retries=0, naps=naps) as (
        client,
        server,
    ):
        done = await client.generate([1], PARAMS)
        assert client.statistics.stale_kv_retries == 1
    assert done.spans == (VersionSpan(1, 0, 3),) and done.cached_tokens == 0
    first, second = (r["extra_key"] for r in server.requests)
    assert first == "0" and second != first and server.requests[1]["rid"] in second
    assert naps.seconds == []  # nothing is wrong with the engine


async def test_a_newer_first_token_without_cached_kv_is_fine() -> None:
    async with served(says(answer(spans=[(1, 0, 3)], cached=0))) as (client, server):
        await client.generate([1], PARAMS)
    assert len(server.requests) == 1


async def test_an_engine_that_ignores_cache_keys_is_refused() -> None:
    stale = says(answer(spans=[(1, 0, 3)], cached=4))
    async with served(stale) as (client, _):
        with pytest.raises(EngineError, match="extra_key"):
            await client.generate([1], PARAMS)


async def test_an_abort_by_the_engine_is_retried() -> None:
    async with served(says(answer((65,), finish="abort")), says()) as (client, _):
        assert (await client.generate([1], PARAMS)).finish_reason == "stop"


@pytest.mark.parametrize(
    "body",
    [
        {"text": "x"},
        {"meta_info": {"finish_reason": None, "output_token_logprobs": [], "weight_versions": []}},
    ],
)
async def test_an_answer_that_training_cannot_use_is_an_error(body: dict[str, Any]) -> None:
    async with served(says(body)) as (client, _):
        with pytest.raises(EngineError, match="without usable log-probs or versions"):
            await client.generate([1], PARAMS)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([("default", 0, 3)], "under weight_version 'default', which is no policy version"),
        ([(4, 0, 3)], "under version 4, and had confirmed 5"),
    ],
)
async def test_an_engine_that_forgot_its_weights_is_reported_and_the_request_goes_elsewhere(
    labels: list[tuple[Any, int, int]], said: str
) -> None:
    async with (
        FakeSGLang([says(answer(spans=labels))]).running() as anew,
        FakeSGLang([says(answer(spans=[(5, 0, 3)]))]).running() as other,
    ):
        pool = FakePool([anew.url, other.url], [5, 5])
        async with client_of(pool) as client:
            assert (await client.generate([1], PARAMS)).spans == (VersionSpan(5, 0, 3),)
    ((reported, error),) = pool.reported
    assert reported == anew.url and isinstance(error, ForgottenWeightsError) and said in str(error)


async def test_what_was_aborted_may_be_of_an_older_version() -> None:
    """An engine that is condemned drops its requests, and its next version may come first."""
    script = [says(answer(spans=[(4, 0, 3)], finish="abort")), says(answer(spans=[(5, 0, 3)]))]
    async with FakeSGLang(script).running() as server:
        pool = FakePool([server.url], [5])
        async with client_of(pool) as client:
            await client.generate([1], PARAMS)
    assert not pool.reported


async def test_every_request_carries_the_key() -> None:
    async with FakeSGLang([hangs], key="sesame").running() as server:
        async with client_of(FakePool([server.url]), headers=engine_headers(KEY)) as client:
            task = asyncio.create_task(client.generate([1], PARAMS))
            await server.received.wait()
            task.cancel()
            await server.abort_seen.wait()
        async with client_of(FakePool([server.url])) as client:
            with pytest.raises(EngineError, match="answered 401"):
                await client.generate([1], PARAMS)


async def test_behind_a_router_a_server_error_is_reported_for_it_may_be_an_engines_death() -> None:
    async with FakeSGLang([says({}, 502), says()]).running() as server:
        pool = FakePool([server.url])
        pool.stay_healthy = True
        async with client_of(pool, router=ThroughRouter(Behind(server.url))) as client:
            await client.generate([1], PARAMS, session_id="s")
    ((reported, error),) = pool.reported
    assert reported == server.url and "answered 502" in str(error)
    assert [headers[ROUTING_HEADER] for headers in server.headers] == ["s", "s"]


class Behind:
    def __init__(self, *engines: str) -> None:
        self.engines = engines


def test_backoff_doubles_and_stays_below_its_ceiling() -> None:
    client = client_of(FakePool([]))
    for failures in range(1, 40):
        ceiling = min(0.25 * 2 ** (failures - 1), BACKOFF_MAX_SECONDS)
        assert ceiling / 2 <= client._backoff(failures) <= ceiling


@pytest.mark.parametrize(
    ("spans", "shifted"),
    [
        ([(0, 0, 3), (1, 3, 6)], [(0, 0, 4), (1, 4, 6)]),
        ([(0, 0, 3), (1, 3, 4)], [(0, 0, 4)]),
        ([(0, 0, 3), (1, 3, 4), (2, 4, 6)], [(0, 0, 4), (1, 4, 5), (2, 5, 6)]),
        ([(2, 0, 6)], [(2, 0, 6)]),
    ],
)
def test_boundary_tokens_go_to_the_older_version(
    spans: list[tuple[int, int, int]], shifted: list[tuple[int, int, int]]
) -> None:
    assert shift_boundaries([VersionSpan(*s) for s in spans]) == tuple(
        VersionSpan(*s) for s in shifted
    )
