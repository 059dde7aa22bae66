"""Calls that run, and all the ways in which they do not."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from stages.engine.mock_tokenizer import MockTokenizer
from stages.generate.tools.calls import Call, GarbledCall
from stages.generate.tools.tool import Tool
from stages.generate.tools.toolbox import MAX_CALLS_A_TURN, Toolbox


def double(n: int) -> int:
    """Doubles."""
    return 2 * n


def box(*tools: object, timeout_seconds: float | None = 5.0, limit: int = 100) -> Toolbox:
    return Toolbox(
        tools,  # type: ignore[arg-type]
        MockTokenizer(),
        timeout_seconds=timeout_seconds,
        max_output_tokens=limit,
    )


def call(name: str, /, **arguments: object) -> Call:
    return Call(name=name, arguments=arguments)


async def test_calls_run_at_once_and_keep_their_order() -> None:
    both = asyncio.Barrier(2)  # neither goes on before the other has come

    async def meet(name: str) -> str:
        await both.wait()
        return name

    tools = box(meet)
    assert await tools.answer([call("meet", name="a"), call("meet", name="b")]) == ["a", "b"]
    assert (tools.num_calls, tools.errors.total()) == (2, 0)


async def test_what_goes_wrong_is_told_to_the_model_and_counted() -> None:
    def fail(how: str) -> str:
        if how == "exit":
            sys.exit(3)
        raise ValueError("no such thing\n" * 1000)

    async def cancelled() -> str:
        raise asyncio.CancelledError  # of something that it has awaited

    tools = box(double, fail, cancelled)
    said = await tools.answer(
        [
            call("double", n=4),
            GarbledCall(text="{", error="not valid JSON"),
            call("halve", n=4),
            call("double", n="4"),
            call("double"),
            call("double", n=1, m=2),
            call("fail", how="raise"),
            call("fail", how="exit"),
            call("cancelled"),
        ]
    )
    assert said[:4] == [
        "8",
        "error: this call cannot be read: not valid JSON",
        "error: no tool is named 'halve'; there are: double, fail, cancelled",
        "error: double takes other arguments: '4' is not of type 'integer' at $.n",
    ]
    assert "'n' is a required property" in said[4] and "'m' was unexpected" in said[5]
    assert (
        said[6].startswith("error: fail failed: ValueError: no such thing") and len(said[6]) < 600
    )
    assert "SystemExit" in said[7] and "CancelledError" in said[8]
    assert tools.errors == {"garbled": 1, "unknown": 1, "arguments": 3, "raised": 3}
    assert tools.num_calls == 9


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_call_that_hangs_is_left_behind(kind: str) -> None:
    over = threading.Event()

    def plain() -> str:
        over.wait()
        return "late"

    async def never() -> str:
        return await asyncio.Future()

    tools = box(double, plain if kind == "plain" else never, timeout_seconds=0.01)
    name = "plain" if kind == "plain" else "never"
    try:
        assert await tools.answer([call(name), call("double", n=1)]) == [
            f"error: {name} took more than 0.01 s",
            "2",
        ]
    finally:
        over.set()
    assert tools.errors == {"timeout": 1}


async def test_a_tools_own_deadline_comes_first() -> None:
    async def never(arguments: dict[str, object]) -> str:
        return await asyncio.Future()

    own = Tool(name="own", description="", parameters={}, call=never, timeout_seconds=0.01)
    assert await box(own, timeout_seconds=None).answer([call("own")]) == [
        "error: own took more than 0.01 s"
    ]


async def test_a_plain_function_may_block() -> None:
    come = threading.Event()

    def wait() -> str:
        come.wait()
        return "done"

    async def set_free() -> str:
        come.set()  # can only run if `wait` does not hold the loop
        return "free"

    assert await box(wait, set_free).answer([call("wait"), call("set_free")]) == ["done", "free"]


@pytest.mark.parametrize("length", [9, 10, 11, 100_000_000])
async def test_long_outputs_are_cut_by_tokens(length: int) -> None:
    tools = box(lambda_tool(lambda: "x" * length), limit=10)
    (said,) = await tools.answer([call("say")])
    if length <= 10:
        assert said == "x" * length and tools.num_cut == 0
    else:
        assert said == f"{'x' * 10}\n[cut: 10 of {length} characters are shown]"
        assert tools.num_cut == 1 and not tools.errors


async def test_a_cut_leaves_no_half_character() -> None:
    (said,) = await box(lambda_tool(lambda: "ä" * 20), limit=7).answer([call("say")])
    assert said == "äää\n[cut: 3 of 20 characters are shown]"


async def test_odd_things_that_a_tool_says_or_does() -> None:
    async def change(arguments: dict[str, Any]) -> Any:
        arguments["list"].append(2)
        return {"name": "\ud800", "list": arguments["list"]}

    tool = Tool(name="change", description="", parameters={"type": "object"}, call=change)
    asked = call("change", list=[1])
    assert await box(tool).answer([asked]) == ['{"name": "?", "list": [1, 2]}']
    assert asked.arguments == {"list": [1]}  # which is in the chat
    assert await box(double).answer([call("\ud800")]) == [
        "error: no tool is named '\\ud800'; there are: double"
    ]


async def test_too_many_calls_in_one_turn() -> None:
    tools = box(double)
    said = await tools.answer([call("double", n=1)] * (MAX_CALLS_A_TURN + 1))
    assert said[-1] == f"error: more than {MAX_CALLS_A_TURN} calls in one turn"
    assert said[:-1] == ["2"] * MAX_CALLS_A_TURN and tools.errors == {"too_many": 1}


async def test_a_cancelled_episode_ends_its_calls() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def never() -> str:
        began.set()
        try:
            return await asyncio.Future()
        finally:
            ended.set()

    task = asyncio.create_task(box(never).answer([call("never")]))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


def test_two_tools_of_one_name_and_a_schema_that_is_none() -> None:
    with pytest.raises(ConfigError, match="the same name: double, double"):
        box(double, double)
    bad = Tool(name="bad", description="", parameters={"type": "thing"}, call=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="parameters of the tool bad: no JSON schema"):
        box(bad)


def lambda_tool(work: object) -> Tool:
    async def say(arguments: dict[str, object]) -> str:
        return work()  # type: ignore[operator, no-any-return]

    return Tool(name="say", description="", parameters={"type": "object"}, call=say)
