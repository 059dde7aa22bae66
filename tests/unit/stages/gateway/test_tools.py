"""Tools through the gateway: the model is told of them by its template, its calls are read by its
own format, and what it said stays the tokens that it said."""

from __future__ import annotations

import json
from typing import Any

from configs.schema import Config
from pipeline.core.types import Completion
from pipeline.wiring.agents import make_parser
from tests.unit.stages.gateway.gateway_world import World, open_world, user
from tests.unit.stages.generate.tools.chatml import ChatML, said

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
TOKENIZER = ChatML()
MODEL = {
    "tokenizer": TOKENIZER,
    "parse": make_parser(Config(), TOKENIZER),
    "params": {"max_new_tokens": 1000},
}


def shown(tokens: Any) -> str:
    return TOKENIZER.decode(tokens, skip_special_tokens=False)


def turn(text: str) -> Completion:
    return said(TOKENIZER, text)


async def test_calls_are_read_and_their_results_are_appended() -> None:
    two = f"I add.\n{CALL}\n{CALL}<|im_end|>"
    async with open_world(turn(two), turn("2<|im_end|>"), **MODEL) as world:
        first = await world.chat(user("1+1?"), tools=[TOOL])
        calls = first["tool_calls"]
        assert first["content"].strip() == "I add."
        assert [c["function"]["name"] for c in calls] == ["add", "add"]
        assert json.loads(calls[0]["function"]["arguments"]) == {"a": 1}
        assert calls[0]["id"] != calls[1]["id"]
        results = [{"role": "tool", "tool_call_id": c["id"], "content": "1"} for c in calls]
        await world.chat(user("1+1?"), first, *results, tools=[TOOL])
        (branch,) = world.session.tree.branches()
        assert shown(branch.tokens[branch.num_prompt :]) == (
            f"{two}\n<|im_start|>tool\n1<|im_end|>\n<|im_start|>tool\n1<|im_end|>\n"
            "<|im_start|>assistant\n2<|im_end|>"
        )
        assert "add" in shown(branch.tokens[: branch.num_prompt])


async def asked_with(world: World, **more: Any) -> dict[str, Any]:
    return await world.chat(user("hi"), tools=[TOOL], **more)


async def test_a_call_that_cannot_be_read_is_what_was_said() -> None:
    garbled = '<tool_call>\n{"name": "add", \n</tool_call>'
    async with open_world(turn(garbled + "<|im_end|>"), **MODEL) as world:
        message = await asked_with(world)
        assert message["content"] == garbled and "tool_calls" not in message


async def test_calls_stay_text_where_none_are_wanted() -> None:
    async with open_world(turn(CALL + "<|im_end|>"), **MODEL) as world:
        message = await asked_with(world, tool_choice="none")
        assert "add" in message["content"] and "tool_calls" not in message


async def test_agents_that_call_alike_go_on_from_their_own_tokens() -> None:
    """Told by the ids of their calls, though the messages say the same."""
    spaced = CALL.replace(": ", ":")
    script = [turn(CALL + "<|im_end|>"), turn(spaced + "<|im_end|>"), turn("1<|im_end|>")]
    async with open_world(*script, **MODEL) as world:
        one, other = await asked_with(world), await asked_with(world)
        for message in (one, other):
            result = {"role": "tool", "content": "1"}
            await world.chat(user("hi"), message, result, tools=[TOOL])
        texts = [shown(b.tokens) for b in world.session.tree.branches()]
        assert [spaced in t for t in texts] == [False, True] and CALL in texts[0]


async def test_the_words_of_a_tool_are_no_control_tokens() -> None:
    async with open_world(turn("a<|im_end|>"), turn("b<|im_end|>"), **MODEL) as world:
        first = await world.chat(user("hi"))
        await world.chat(user("hi"), first, {"role": "tool", "content": "<|im_end|>"})
        asked = world.client.asked[-1][0]
        assert shown(asked).count("<|im_end|>") == 4  # of which one is words
        assert asked.count(TOKENIZER.eos_token_id) == 3


async def test_thinking_that_the_template_forgets_stays_where_it_was_sampled() -> None:
    tokenizer = ChatML(forgets=True)
    thought = "<think>\nhm\n</think>\n\nyes<|im_end|>"
    script = [said(tokenizer, thought), said(tokenizer, "no<|im_end|>")]
    async with open_world(*script, tokenizer=tokenizer) as world:
        first = await world.chat(user("hi"))
        await world.chat(user("hi"), first, user("sure?"))
        (branch,) = world.session.tree.branches()
        assert shown(branch.tokens).count("hm") == 1 and branch.loss_mask[0] == 1
