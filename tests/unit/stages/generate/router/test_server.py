"""The router over HTTP: SGLang's routes, in front of an engine client."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import numpy as np
import pytest

from pipeline.core.errors import ConfigError, EngineError, RefusedRequestError
from pipeline.core.types import VersionSpan
from stages.engine.mock import MockTokenizer
from stages.generate.router import Router
from tests.unit.fake_engine import FakeEngineClient, completion

PARAMS = {"max_new_tokens": 8}


class Asked:
    """A router's client: the routes, over one connection pool."""

    def __init__(self, router: Router, session: aiohttp.ClientSession) -> None:
        self.router, self._session = router, session

    async def post(self, payload: Any, route: str = "/generate", **more: Any) -> tuple[int, Any]:
        async with self._session.post(self.router.url + route, json=payload, **more) as got:
            return got.status, await got.json()

    async def get(self, route: str) -> tuple[int, Any]:
        async with self._session.get(self.router.url + route) as got:
            return got.status, await got.json()


@asynccontextmanager
async def routed(client: Any, **more: Any) -> AsyncIterator[Asked]:
    router = Router(client, MockTokenizer(), **more)
    router.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Asked(router, session)
    finally:
        await router.close()


class Stuck(FakeEngineClient):
    """Answers nothing; says when it was asked and when it was given up."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.given_up = asyncio.Event(), asyncio.Event()

    async def generate(self, *given: Any, **named: Any) -> Any:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up.set()


async def test_an_answer_has_sglangs_form_and_keeps_a_push_inside_it() -> None:
    spans = (VersionSpan(3, 0, 1), VersionSpan(4, 1, 2))
    client = FakeEngineClient(replace(completion("42", finish="length"), spans=spans))
    async with routed(client) as asked:
        status, body = await asked.post(
            {"text": "6*7=", "sampling_params": PARAMS, "return_logprob": True, "stream": False}
        )
    meta = body["meta_info"]
    assert status == 200 and (body["text"], body["output_ids"]) == ("42", [52, 50])
    assert meta["output_token_logprobs"] == [[-0.01, 52, None], [-0.02, 50, None]]
    assert meta["finish_reason"] == {"type": "length", "length": 2}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (4, 2, 0)
    assert meta["weight_version"] == "4"
    assert meta["weight_versions"] == [
        {"version": "3", "start": 0, "end": 1},
        {"version": "4", "start": 1, "end": 2},
    ]
    assert client.asked == [([54, 42, 55, 61], PARAMS, None)]


@pytest.mark.parametrize(
    ("headers", "keys", "session"),
    [
        ({"X-SMG-Routing-Key": "a"}, {}, "a"),
        ({}, {"routing_key": "b"}, "b"),
        ({}, {"session_id": "c"}, "c"),
    ],
)
async def test_a_routing_key_is_the_pools_session(
    headers: dict[str, str], keys: dict[str, str], session: str
) -> None:
    client = FakeEngineClient("x")
    async with routed(client) as asked:
        await asked.post({"input_ids": [1], "sampling_params": PARAMS, **keys}, headers=headers)
    assert client.asked == [([1], PARAMS, session)]


async def test_lists_and_n_are_answered_by_lists_in_order() -> None:
    client = FakeEngineClient("x", "y", "z", "u", "v")
    async with routed(client) as asked:
        _, many = await asked.post({"text": ["a", "bc"], "sampling_params": [PARAMS, {}]})
        _, one = await asked.post({"text": ["a"]})
        _, twice = await asked.post({"text": "a", "sampling_params": {"n": 2}})
    assert [a["text"] for a in many] == ["x", "y"] and len(one) == 1 and len(twice) == 2
    assert [len(ids) for ids, *_ in client.asked] == [1, 2, 1, 1, 1]
    assert [p["max_new_tokens"] for _, p, _ in client.asked] == [8, 128, 128, 128, 128]


async def test_the_texts_of_tokens_are_there_where_asked_for() -> None:
    async with routed(FakeEngineClient("42")) as asked:
        _, body = await asked.post({"text": "a", "return_text_in_logprobs": True})
    assert [text for *_, text in body["meta_info"]["output_token_logprobs"]] == ["4", "2"]


async def test_what_it_stopped_at_is_said() -> None:
    async with routed(FakeEngineClient(replace(completion("42"), matched="</s>"))) as asked:
        _, body = await asked.post({"text": "a"})
    assert body["meta_info"]["finish_reason"] == {"type": "stop", "matched": "</s>"}


async def test_what_is_not_set_is_left_out_of_the_parameters() -> None:
    client = FakeEngineClient("x")
    async with routed(client) as asked:
        await asked.post({"text": "a", "sampling_params": {**PARAMS, "stop": None}})
    assert client.asked[0][1] == PARAMS


async def test_a_conversation_in_text_goes_on_from_the_sampled_tokens() -> None:
    sampled = replace(completion("42"), token_ids=(300, 301), text="42")
    client = FakeEngineClient(sampled)
    async with routed(client) as asked:
        await asked.post({"text": "6*7=", "sampling_params": PARAMS})
        await asked.post({"text": "6*7=42;", "sampling_params": PARAMS})
    assert client.asked[1][0] == [*b"6*7=", 300, 301, *b";"]


async def test_answers_stay_within_the_context() -> None:
    client = FakeEngineClient("x")
    async with routed(client, context_length=6) as asked:
        await asked.post({"text": "abcd", "sampling_params": PARAMS})
        status, body = await asked.post({"text": "abcdef", "sampling_params": PARAMS})
    assert client.asked[0][1]["max_new_tokens"] == 2
    assert status == 400 and "6 tokens and leaves no room in a context of 6" in str(body)


async def test_routed_experts_come_as_sglang_sends_them() -> None:
    experts = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    client = FakeEngineClient(replace(completion("42"), routed_experts=experts, experts_start=5))
    async with routed(client) as asked:
        _, body = await asked.post({"text": "a", "return_routed_experts": True})
    meta = body["meta_info"]
    got = np.frombuffer(base64.b64decode(meta["routed_experts"]), np.int32)
    assert got.tolist() == list(range(12)) and meta["routed_experts_start_len"] == 5


@pytest.mark.parametrize(
    ("error", "status"), [(RefusedRequestError("too long"), 400), (EngineError("all gone"), 503)]
)
async def test_an_engines_error_is_said_with_its_kind(error: Exception, status: int) -> None:
    async with routed(FakeEngineClient(error)) as asked:
        got = await asked.post({"text": ["a", "b"]})
    assert got == (status, {"error": {"message": str(error), "code": status}})


async def test_an_unknown_route_names_those_there_are() -> None:
    async with routed(FakeEngineClient()) as asked:
        status, body = await asked.get("/generate")
    message = body["error"]["message"]
    assert status == 404 and "\n" not in message
    assert message.startswith("GET /generate is not served; there are: POST /generate, ")


async def test_what_is_no_json_is_refused_in_words() -> None:
    async with routed(FakeEngineClient()) as asked:
        status, body = await asked.post(None, data=b"{text", headers={})
    assert status == 400 and "the body is no JSON" in body["error"]["message"]


async def test_model_health_and_workers() -> None:
    async with routed(FakeEngineClient(), model="/m", current_version=lambda: 7) as asked:
        assert await asked.get("/health") == (200, {})
        _, info = await asked.get("/get_model_info")
        _, models = await asked.get("/v1/models")
        _, workers = await asked.get("/workers")
        assert workers["workers"][0]["url"] == asked.router.url
    assert (info["model_path"], info["weight_version"]) == ("/m", "7")
    assert [m["id"] for m in models["data"]] == ["/m"]


@pytest.mark.parametrize("what", [{"rid": "mine"}, {"abort_all": True}])
async def test_an_aborted_request_is_answered_as_aborted(what: dict[str, Any]) -> None:
    client = Stuck()
    async with routed(client) as asked:
        waiting = asyncio.create_task(asked.post({"text": "a", "rid": "mine-1"}))
        await client.began.wait()
        assert await asked.get("/v1/loads?include=core") == (
            200,
            {"loads": [{"num_total_reqs": 1}]},
        )
        assert await asked.post(what, "/abort_request") == (200, {})
        status, body = await waiting
    assert status == 200 and body["output_ids"] == [] and client.given_up.is_set()
    assert body["meta_info"]["finish_reason"] == {"type": "abort"}


async def test_an_abort_of_nobody_is_refused() -> None:
    async with routed(FakeEngineClient()) as asked:
        assert (await asked.post({}, "/abort_request"))[0] == 400


async def test_who_hangs_up_is_not_worked_for() -> None:
    client = Stuck()
    async with routed(client) as asked:
        waiting = asyncio.create_task(asked.post({"text": "a"}))
        await client.began.wait()
        waiting.cancel()
        await client.given_up.wait()


async def test_close_ends_what_is_under_way_and_gives_the_port_back() -> None:
    client = Stuck()
    async with routed(client) as asked:
        waiting = asyncio.create_task(asked.post({"text": "a"}))
        await client.began.wait()
        await asked.router.close()
        assert client.given_up.is_set()
        _, body = await waiting
        assert body["meta_info"]["finish_reason"] == {"type": "abort"}
        with pytest.raises(aiohttp.ClientConnectorError):
            await asked.get("/health")


async def test_a_port_that_is_taken_is_a_mistake_of_the_flags() -> None:
    router = Router(FakeEngineClient(), MockTokenizer())
    with pytest.raises(ConfigError, match=rf"--sglang-router-port {router.port}: nothing can"):
        Router(FakeEngineClient(), MockTokenizer(), port=router.port)
    router.release()
