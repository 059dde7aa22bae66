"""OpenAI's own client, unmodified."""

import json
from typing import Any

import openai
import pytest

from tests.unit.stages.gateway.clients.calculator import (
    ADD,
    PARAMETERS,
    QUESTION,
    SAID,
    calculator,
    read,
    trained,
)
from tests.unit.stages.gateway.gateway_world import World

FUNCTION: Any = {"name": "add", "description": "Adds.", "parameters": PARAMETERS}
CHAT_TOOL: Any = {"type": "function", "function": FUNCTION}
TOOL: Any = {"type": "function", "strict": True, **FUNCTION}


def client_of(world: World) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=world.access.base_url, api_key=world.access.token)


async def test_chat_plain_and_streamed_is_one_conversation() -> None:
    async with calculator("Hello.", "Bye.") as world, client_of(world) as client:
        messages: list[Any] = [{"role": "user", "content": "Hi"}]
        first = await client.chat.completions.create(model="policy", messages=messages)
        messages += [first.choices[0].message, {"role": "user", "content": "Go"}]
        stream = await client.chat.completions.create(
            model="policy", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Bye."
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 4
        assert trained(world) == ["Hello.Bye."]


async def test_chat_calls_a_tool() -> None:
    async with calculator() as world, client_of(world) as client:
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        for _ in range(2):
            answer = await client.chat.completions.create(
                model="policy", messages=messages, tools=[CHAT_TOOL]
            )
            message = answer.choices[0].message
            messages.append(message)
            for call in message.tool_calls or ():
                assert call.type == "function"
                added = sum(json.loads(call.function.arguments).values())
                messages.append({"role": "tool", "tool_call_id": call.id, "content": str(added)})
        assert message.content == SAID
        assert trained(world) == [ADD + SAID]


async def test_completions_go_on_from_their_own_text() -> None:
    async with calculator(" there was", " a king.") as world, client_of(world) as client:
        first = await client.completions.create(model="policy", prompt="Once", logprobs=0)
        assert first.choices[0].logprobs is not None
        assert len(first.choices[0].logprobs.token_logprobs or ()) == len(" there was")
        prompt = f"Once{first.choices[0].text}"
        stream = await client.completions.create(model="policy", prompt=prompt, stream=True)
        assert [c.choices[0].text async for c in stream] == [" a king."]
        assert trained(world) == [" there was a king."]


async def test_responses_call_a_tool_and_go_on_from_their_items() -> None:
    async with calculator() as world, client_of(world) as client:
        items: Any = [{"role": "user", "content": QUESTION}]
        first = await client.responses.create(
            model="policy", input=items, instructions="Be brief.", tools=[TOOL]
        )
        (call,) = first.output
        assert call.type == "function_call" and json.loads(call.arguments) == {"a": 2, "b": 3}
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "5"}
        second = await client.responses.create(
            model="policy", input=[*items, call, output], instructions="Be brief.", tools=[TOOL]
        )
        assert second.output_text == SAID
        assert read(world, 1).startswith("system: Be brief.")
        assert read(world, 1).endswith(f"{QUESTION}\nassistant: {ADD}\ntool: 5\nassistant: ")
        assert trained(world) == [ADD + SAID]


async def test_responses_go_on_from_the_id_of_the_last() -> None:
    async with calculator() as world, client_of(world) as client:
        first = await client.responses.create(model="policy", input=QUESTION, tools=[TOOL])
        (call,) = first.output
        assert call.type == "function_call"
        async with client.responses.stream(
            model="policy",
            previous_response_id=first.id,
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "5"}],
            tools=[TOOL],
        ) as stream:
            deltas = [e.delta async for e in stream if e.type == "response.output_text.delta"]
            last = await stream.get_final_response()
        assert ("".join(deltas), last.output_text, last.status) == (SAID, SAID, "completed")
        assert trained(world) == [ADD + SAID]


async def test_a_refusal_is_the_clients_error() -> None:
    async with calculator() as world, client_of(world) as client:
        with pytest.raises(openai.BadRequestError, match="'web_search'; expected function"):
            await client.responses.create(
                model="policy", input="Hi", tools=[{"type": "web_search"}]
            )
        with pytest.raises(openai.BadRequestError) as raised:
            await client.responses.create(model="policy", input="Hi", previous_response_id="resp_x")
        assert raised.value.code == "previous_response_not_found"
        wrong = client.with_options(api_key="sk-none")
        with pytest.raises(openai.AuthenticationError):
            await wrong.completions.create(model="policy", prompt="Once")
