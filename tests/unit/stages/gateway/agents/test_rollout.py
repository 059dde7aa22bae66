"""A sample by an agent: what it does in its session is what is trained, and whatever becomes of it
has a status and a reason."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from pipeline.core.agent_counts import agent_counts
from pipeline.core.errors import EngineError, GenerateError
from pipeline.core.time import MonotonicTime
from pipeline.core.types import Sample, Status
from stages.gateway.agents.function import FunctionAgent
from stages.gateway.agents.rollout import AgentRollouts
from stages.gateway.server import Gateway
from tests.unit.fake_engine import PARAMS, FakeEngineClient, completion, sample, session_args
from tests.unit.stages.gateway.gateway_world import TOKENIZER, template_of, user


async def ask(base_url: str, api_key: str, *messages: Any) -> dict[str, Any]:
    """As a client does: what is not answered raises."""
    async with (
        aiohttp.ClientSession(headers={"x-api-key": api_key}, raise_for_status=True) as http,
        http.post(base_url + "/chat/completions", json={"messages": messages}) as answer,
    ):
        said: dict[str, Any] = (await answer.json())["choices"][0]["message"]
        return said


async def made_by(
    agent: Any,
    *script: Any,
    scorer: bool = False,
    timeout: float | None = 60.0,
    params: dict[str, Any] | None = None,
    origin: Sample | None = None,
) -> list[Sample]:
    rollouts = AgentRollouts(
        FunctionAgent(agent),
        Gateway(),
        timeout_seconds=timeout,
        max_running=4,
        has_scorer=scorer,
        template=template_of(TOKENIZER),
    )
    args = session_args(FakeEngineClient(*script), time=MonotonicTime())
    try:
        return await rollouts.one(args, origin or sample(), {**PARAMS, **(params or {})}, False)
    finally:
        await rollouts.close()


async def test_two_turns_and_a_returned_reward() -> None:
    async def agent(task: Any, base_url: str, api_key: str) -> float:
        question = user(task["prompt"])
        said = await ask(base_url, api_key, question)
        await ask(base_url, api_key, question, said, user("sure?"))
        return 1.0 if said["content"] == task["label"] else 0.0

    origin = sample(label="yes", metadata={"difficulty": 3})
    first = completion("yes", version=2)
    (made,) = await made_by(agent, first, "no", origin=origin)
    assert made.reward == 1.0 and made.status is Status.COMPLETED
    assert made.response == "yes\nuser: sure?\nassistant: no".replace("\nuser", "user", 0)
    assert sum(made.loss_mask or ()) == 5 and made.weight_versions[0] == (2, 0, 3)
    about = {"part": 0, "parts": 1, "requests": 2, "calls": 0, "forks": 0}
    assert made.metadata == {"difficulty": 3, "agent": about}
    assert made.group_index == 0 and made.index == 0


async def test_sub_agents_side_by_side_are_samples_of_one_rollout() -> None:
    async def agent(task: Any, base_url: str, api_key: str) -> dict[str, float]:
        await asyncio.gather(*(ask(base_url, api_key, user(f"part {i}")) for i in range(3)))
        return {"score": 0.5}

    made = await made_by(agent, "x", scorer=False)
    assert [m.reward for m in made] == [{"score": 0.5}] * 3
    assert [m.metadata["agent"]["part"] for m in made] == [0, 1, 2]
    assert agent_counts(made)["agent_forks"] == 2
    assert len({id(m.metadata) for m in made}) == 3


async def test_a_plain_function_may_block() -> None:
    import json
    import urllib.request

    def agent(task: Any, base_url: str, api_key: str) -> float:
        body = json.dumps({"messages": [user("hi")]}).encode()
        headers = {"Authorization": f"Bearer {api_key}"}
        asked = urllib.request.Request(base_url + "/chat/completions", body, headers)
        with urllib.request.urlopen(asked) as answer:
            return float(json.load(answer)["choices"][0]["message"]["content"] == "yes")

    (made,) = await made_by(agent, "yes")
    assert made.reward == 1.0


async def test_without_a_reward_it_is_left_to_the_scorer_or_fails() -> None:
    async def agent(task: Any, base_url: str, api_key: str) -> None:
        await ask(base_url, api_key, user("hi"))

    (made,) = await made_by(agent, "yes", scorer=True)
    assert made.reward is None and made.status is Status.COMPLETED
    with pytest.raises(GenerateError, match="ended without a reward"):
        await made_by(agent, "yes")


async def hangs(task: Any, base_url: str, api_key: str) -> None:
    await ask(base_url, api_key, user("hi"))
    await asyncio.Event().wait()


async def test_an_agent_that_never_ends_is_cut_off_and_is_data() -> None:
    (made,) = await made_by(hangs, "yes", scorer=True, timeout=0.3)
    assert made.status is Status.TRUNCATED and made.reward is None and made.response == "yes"
    with pytest.raises(GenerateError, match=r"--agent-timeout"):
        await made_by(hangs, "yes", timeout=0.3)


async def test_a_posted_reward_counts_though_the_agent_never_ends() -> None:
    async def agent(task: Any, base_url: str, api_key: str) -> None:
        await ask(base_url, api_key, user("hi"))
        headers = {"x-api-key": api_key}
        async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as http:
            await http.post(task["reward_url"], json={"reward": 0.25})
        await asyncio.Event().wait()

    (made,) = await made_by(agent, "yes", timeout=0.5)
    assert made.reward == 0.25 and made.status is Status.TRUNCATED


async def test_without_room_it_is_truncated_whatever_the_agent_makes_of_it() -> None:
    async def agent(task: Any, base_url: str, api_key: str) -> float:
        said = await ask(base_url, api_key, user("hi"))
        await ask(base_url, api_key, user("hi"), said, user("a long question"))
        raise AssertionError("it was refused")

    (made,) = await made_by(agent, "yes", scorer=True, params={"max_new_tokens": 8})
    assert made.status is Status.TRUNCATED and made.response == "yes"


async def test_what_an_agent_raises_is_raised_with_its_line() -> None:
    async def agent(task: Any, base_url: str, api_key: str) -> float:
        raise RuntimeError("no tools today")

    with pytest.raises(RuntimeError, match="no tools today") as raised:
        await made_by(agent, "x", scorer=True)
    assert "--agent-function-path" in raised.value.__notes__[0]


async def test_an_agent_that_asks_for_nothing_has_failed() -> None:
    async def agent(task: Any, base_url: str, api_key: str) -> float:
        return 1.0

    with pytest.raises(GenerateError, match="got no answer of the model"):
        await made_by(agent, "x")


async def test_what_the_engines_said_is_told() -> None:
    async def agent(task: Any, base_url: str, api_key: str) -> float:
        try:
            await ask(base_url, api_key, user("hi"))
        except aiohttp.ClientResponseError:
            return 0.0
        return 1.0

    with pytest.raises(GenerateError, match="all engines are down"):
        await made_by(agent, EngineError("all engines are down"))


async def test_its_token_is_worth_nothing_once_it_has_ended() -> None:
    kept: list[str] = []

    async def agent(task: Any, base_url: str, api_key: str) -> float:
        kept.extend([base_url, api_key])
        await ask(base_url, api_key, user("hi"))
        return 1.0

    rollouts = AgentRollouts(
        FunctionAgent(agent),
        Gateway(),
        timeout_seconds=None,
        max_running=1,
        has_scorer=False,
        template=template_of(TOKENIZER),
    )
    args = session_args(FakeEngineClient("x"), time=MonotonicTime())
    await rollouts.one(args, sample(), PARAMS, False)
    with pytest.raises(aiohttp.ClientResponseError, match="401"):
        await ask(*kept, user("hi"))
    await rollouts.close()
