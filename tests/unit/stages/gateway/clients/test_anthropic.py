"""Anthropic's own client, unmodified."""

from typing import Any

import anthropic
import pytest

from stages.gateway.limits import Limits
from stages.gateway.server import Gateway
from tests.unit.stages.gateway.clients.calculator import (
    ADD,
    PARAMETERS,
    QUESTION,
    SAID,
    calculator,
    read,
    trained,
)
from tests.unit.stages.gateway.gateway_world import World, open_world

TOOL: Any = {"name": "add", "description": "Adds.", "input_schema": PARAMETERS}


def client_of(world: World) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=world.access.url, api_key=world.access.token)


async def test_plain_and_streamed_is_one_conversation() -> None:
    async with calculator("Hello.", "Bye.") as world, client_of(world) as client:
        messages: list[Any] = [{"role": "user", "content": "Hi"}]
        first = await client.messages.create(
            model="policy", max_tokens=9, system="Be brief.", messages=messages
        )
        assert (first.stop_reason, first.usage.output_tokens) == ("end_turn", 6)
        messages += [
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": "Go"},
        ]
        async with client.messages.stream(
            model="policy", max_tokens=9, system="Be brief.", messages=messages
        ) as stream:
            assert "".join([text async for text in stream.text_stream]) == "Bye."
            last = await stream.get_final_message()
        assert last.usage.input_tokens == len(read(world, 1))
        assert last.usage.output_tokens == len("Bye.")
        assert trained(world) == ["Hello.Bye."]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_tool_is_called(is_streamed: bool) -> None:
    async with calculator() as world, client_of(world) as client:
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        asked: Any = {"model": "policy", "max_tokens": 99, "tools": [TOOL], "messages": messages}
        for _ in range(2):
            if is_streamed:
                async with client.messages.stream(**asked) as stream:
                    answer: Any = await stream.get_final_message()
            else:
                answer = await client.messages.create(**asked)
            messages.append({"role": "assistant", "content": answer.content})
            if answer.stop_reason == "tool_use":
                (use,) = answer.content
                result = {
                    "type": "tool_result",
                    "tool_use_id": use.id,
                    "content": str(use.input["a"] + use.input["b"]),
                }
                messages.append({"role": "user", "content": [result]})
        assert answer.content[0].text == SAID
        assert "\ntool: 5\n" in read(world, 1)
        assert trained(world) == [ADD + SAID]


async def test_a_stop_sequence_is_named() -> None:
    from tests.unit.fake_engine import completion

    cut = completion("one END")
    stopped = type(cut)(**{**{f: getattr(cut, f) for f in cut.__slots__}, "matched": "END"})
    async with open_world(stopped) as world, client_of(world) as client:
        answer = await client.messages.create(
            model="policy",
            max_tokens=9,
            stop_sequences=["END"],
            messages=[{"role": "user", "content": "Count"}],
        )
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "END")
        assert world.client.asked[0][1]["stop"] == ["END"]


async def test_tokens_are_counted_without_an_engine() -> None:
    async with calculator() as world, client_of(world) as client:
        counted = await client.messages.count_tokens(
            model="policy", system="A", messages=[{"role": "user", "content": "Hi"}]
        )
        assert counted.input_tokens == len("system: A\nuser: Hi\nassistant: ")
        assert world.client.asked == [] and world.session.tree.branches() == []


async def test_a_refusal_is_the_clients_error() -> None:
    short: Any = [{"role": "user", "content": "Hi"}]
    long: Any = [{"role": "user", "content": "Hi" * 400}]
    gateway = Gateway(limits=Limits(max_body_bytes=500))
    async with open_world("x", gateway=gateway) as world, client_of(world) as client:
        with pytest.raises(anthropic.BadRequestError, match="max_tokens is 0; expected a whole"):
            await client.messages.create(model="policy", max_tokens=0, messages=short)
        with pytest.raises(anthropic.AuthenticationError) as raised:
            await client.with_options(api_key="sk-none").messages.create(
                model="policy", max_tokens=9, messages=short
            )
        assert raised.value.body["error"]["type"] == "authentication_error"  # type: ignore[index, call-overload]
        with pytest.raises(anthropic.RequestTooLargeError) as large:
            await client.messages.create(model="policy", max_tokens=9, messages=long)
        assert large.value.body["error"]["type"] == "request_too_large"  # type: ignore[index, call-overload]
