"""The gateway over HTTP: answers go on from the very tokens, and what is no request is refused with
words."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import aiohttp
import orjson
import pytest

from pipeline.core.errors import ConfigError, EngineError, GenerateError, RefusedRequestError
from stages.gateway.limits import Limits
from stages.gateway.server import Gateway
from tests.unit.fake_engine import FakeEngineClient, completion
from tests.unit.stages.gateway.gateway_world import make_session, open_world, shown, user

CHAT = "/v1/chat/completions"
HI = {"messages": [user("hi")]}


async def test_a_chat_that_goes_on_continues_from_the_sampled_tokens() -> None:
    async with open_world("yes", "no") as world:
        said = await world.chat(user("hi"))
        assert said["content"] == "yes"
        await world.chat(user("hi"), {**said, "content": " yes\n"}, user("sure?"))
        first, second = (asked for asked, _, _ in world.client.asked)
        assert shown(first) == "user: hi\nassistant: "
        assert shown(second) == "user: hi\nassistant: yes\nuser: sure?\nassistant: "
        (branch,) = world.session.tree.branches()
        assert shown(branch.tokens[branch.num_prompt :]) == "yes\nuser: sure?\nassistant: no"
        assert sum(branch.loss_mask) == len("yesno")


async def test_an_edited_history_is_a_branch() -> None:
    async with open_world("yes", "no", "maybe") as world:
        said = await world.chat(user("hi"))
        await world.chat(user("hi"), said, user("sure?"))
        await world.chat(user("hi"), said, user("really?"))
        branches = world.session.tree.branches()
        assert [sum(b.loss_mask) for b in branches] == [len("yesno"), len("maybe")]
        assert world.session.tree.num_branches == 1


async def test_several_answers_are_branches_and_all_are_given() -> None:
    async with open_world("yes", "no", "more") as world:
        status, answer = await world.post(CHAT, {**HI, "n": 2, "logprobs": True})
        assert status == 200
        texts = [c["message"]["content"] for c in answer["choices"]]
        assert sorted(texts) == ["no", "yes"]
        log_probs = answer["choices"][0]["logprobs"]["content"]
        assert [t["token"] for t in log_probs] == list(texts[0])
        assert log_probs[0]["logprob"] == -0.01
        await world.chat(user("hi"), {"role": "assistant", "content": "no"}, user("go on"))
        assert {b.loss_mask.count(1) for b in world.session.tree.branches()} == {3, 6}


async def test_the_run_says_how_is_sampled_and_the_agent_how_long() -> None:
    async with open_world("x", params={"stop": ["</end>"]}) as world:
        schema = {"type": "object"}
        await world.chat(
            user("hi"),
            temperature=0,
            top_p=0.1,
            max_tokens=5,
            stop="END",
            response_format={"type": "json_schema", "json_schema": {"schema": schema}},
        )
        (_, params, session_id), *_ = world.client.asked
        assert params == {
            "temperature": 1.0,
            "max_new_tokens": 5,
            "stop": ["</end>", "END"],
            "json_schema": orjson.dumps(schema).decode(),
        }
        assert session_id == world.session.id


async def test_a_stream_has_the_same_answer_in_pieces() -> None:
    async with open_world("yes") as world:
        body = {**HI, "stream": True, "stream_options": {"include_usage": True}}
        headers = {"x-api-key": world.access.token}
        async with world.http.post(
            world.access.base_url + "/chat/completions", json=body, headers=headers
        ) as answer:
            assert answer.content_type == "text/event-stream"
            *events, done, end = (await answer.read()).decode().split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        chunks = [orjson.loads(e.removeprefix("data: ")) for e in events]
        deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
        assert "".join(d.get("content", "") for d in deltas) == "yes"
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["usage"]["completion_tokens"] == 3


async def test_the_response_budget_covers_all_turns_of_a_branch() -> None:
    async with open_world("yes", params={"max_new_tokens": 8}) as world:
        said = await world.chat(user("hi"))
        status, answer = await world.post(
            CHAT, {"messages": [user("hi"), said, user("a long question")]}
        )
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert world.session.is_truncated
        await world.chat(user("anew"))  # another branch has its own room
        assert world.client.asked[-1][1]["max_new_tokens"] == 8


async def test_a_session_is_reached_with_its_own_token_alone() -> None:
    gateway = Gateway()
    async with open_world("x", gateway=gateway) as world:
        other = await gateway.open(make_session(FakeEngineClient("y"), "other"))
        assert (await world.post(CHAT, HI, token=""))[0] == 401
        assert (await world.post(CHAT, HI, token="sk-guessed"))[0] == 401
        posted = {"reward": 0.5}
        path = f"/v1/rollouts/{world.access.rollout}/reward"
        assert (await world.post(path, posted, token=other.token))[0] == 403
        assert (await world.post(path, posted, token="sk-guessed"))[0] == 401
        assert world.session.reward is None
        assert (await world.post(path, posted))[0] == 200
        assert world.session.reward == 0.5
        gateway.shut(world.access)
        assert (await world.post(CHAT, HI))[0] == 401


GARBAGE: list[Any] = [
    b"",
    b"{",
    b"\xff\xfe",
    [],
    {},
    {"messages": []},
    {"messages": "hi"},
    {"messages": [{}]},
    {"messages": [{"role": "king", "content": "hi"}]},
    {"messages": [{"role": ["user"], "content": "hi"}]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    {"messages": [{"role": "assistant", "tool_calls": 3}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 3}}]}]},
    {**HI, "model": 3},
    {**HI, "tools": {}},
    {**HI, "tools": [{"type": "function"}]},
    {**HI, "tool_choice": 3, "tools": []} | {"tools": [{"function": {"name": "f"}}]},
    {**HI, "n": 0},
    {**HI, "n": True},
    {**HI, "n": 1000},
    {**HI, "max_tokens": 0.5},
    {**HI, "stop": [""]},
    {**HI, "stop": {}},
    {**HI, "stream": "yes"},
    {**HI, "stream_options": []},
    {**HI, "top_logprobs": 3},
    {**HI, "response_format": "json"},
    {**HI, "response_format": {"type": "json_schema", "json_schema": {"schema": 3}}},
    {**HI, "prompt": "hi"},
    b'{"messages": [{"role": "user", "content": "hi"}], "tools": [{"function": {"name": "f",'
    b' "parameters": ' + b'{"a": ' * 400 + b"1" + b"}" * 400 + b"}}]}",
]


@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
async def test_what_is_no_request_is_refused_with_words(body: Any) -> None:
    async with open_world("x") as world:
        status, answer = await world.post(CHAT, body)
        assert status == 400, answer
        assert answer["error"]["type"] == "invalid_request_error" and answer["error"]["message"]
        assert world.client.asked == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        {},
        {"reward": "1"},
        b'{"reward": NaN}',
        {"reward": None},
        {"reward": [1]},
        {"reward": True},
    ],
)
async def test_what_is_no_reward_is_refused(body: Any) -> None:
    async with open_world("x") as world:
        status, _ = await world.post(f"/v1/rollouts/{world.access.rollout}/reward", body)
        assert status == 400 and world.session.reward is None


async def test_bounds_on_bodies_requests_and_sessions() -> None:
    limits = Limits(max_body_bytes=1000, max_sessions=1, requests_per_second=1e-6, burst=3)
    gateway = Gateway(limits=limits)
    async with open_world("x", gateway=gateway) as world:
        with pytest.raises(GenerateError, match="as many as it may"):
            await gateway.open(make_session(FakeEngineClient("y")))
        status, answer = await world.post(CHAT, {"messages": [user("h" * 2000)]})
        assert status == 413 and answer["error"]["message"]
        assert (await world.post(CHAT, HI))[0] == 200
        assert (await world.post(CHAT, HI))[0] == 200
        assert (await world.post(CHAT, HI))[0] == 429


async def test_a_packed_body_is_refused_unread() -> None:
    async with open_world("x") as world:
        packed = gzip.compress(orjson.dumps(HI))
        for body in (packed, b"no gzip"):
            status, answer = await world.post(CHAT, body, **{"Content-Encoding": "gzip"})
            assert status == 400 and "Content-Encoding" in answer["error"]["message"]


async def test_an_engine_that_fails_or_refuses_is_told_apart() -> None:
    async with open_world(EngineError("all are down"), RefusedRequestError("bad schema")) as world:
        status, answer = await world.post(CHAT, HI)
        assert (status, answer["error"]["message"]) == (503, "all are down")
        assert world.session.last_error == "all are down"
        world.client.script.append(completion("x"))
        assert (await world.post(CHAT, HI))[0] == 400


async def test_unknown_routes_and_methods_are_refused_in_json() -> None:
    async with open_world("x") as world:
        assert (await world.post("/v1/nothing", HI))[0] == 404
        assert (await world.post("/v1/models", HI))[0] == 405


async def test_the_model_is_listed() -> None:
    async with open_world("x", gateway=Gateway(model="tiny")) as world:
        headers = {"Authorization": f"Bearer {world.access.token}"}
        async with world.http.get(world.access.base_url + "/models", headers=headers) as answer:
            assert [m["id"] for m in (await answer.json())["data"]] == ["tiny"]
        async with world.http.get(world.access.base_url + "/models") as answer:
            assert answer.status == 401


async def test_nobody_waits_for_the_answer_of_an_agent_that_has_gone() -> None:
    async with open_world("x") as world:
        reached, cancelled = asyncio.Event(), asyncio.Event()

        async def never(*_: Any, **__: Any) -> Any:
            reached.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        world.client.generate = never  # type: ignore[method-assign]
        task = asyncio.create_task(world.post(CHAT, HI))
        await reached.wait()
        task.cancel()
        await world.http.close()
        await asyncio.wait_for(cancelled.wait(), 10)
        assert world.session.tree.num_answers == 0
        world.http = aiohttp.ClientSession()


async def test_tokens_that_no_tokenizer_has_never_reach_an_engine() -> None:
    async with open_world("x") as world:
        for prompt, expected in (([65, 1 << 20], 400), ([65, 66], 200)):
            assert (await world.post("/v1/completions", {"prompt": prompt}))[0] == expected
        assert [ids for ids, _, _ in world.client.asked] == [[65, 66]]


async def test_sessions_that_are_the_first_at_once_find_the_same_server() -> None:
    gateway = Gateway()
    sessions = [make_session(FakeEngineClient("x"), str(i)) for i in range(3)]
    opened = await asyncio.gather(*map(gateway.open, sessions))
    assert len({access.url for access in opened}) == 1 and not opened[0].url.endswith(":0")
    await gateway.close()


async def test_an_address_of_another_machine_is_refused_with_words() -> None:
    with pytest.raises(ConfigError, match="--agent-gateway-host"):
        await Gateway(host="192.0.2.1").start()
