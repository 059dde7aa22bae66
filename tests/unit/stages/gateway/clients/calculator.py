"""A rollout in which the model calls a tool and then answers, for any client to go through."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from stages.gateway.answer import ParsedAnswer, ToolCall
from tests.unit.stages.gateway.gateway_world import World, open_world

ADD = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
SAID = "It is 5."
QUESTION = "What is 2 and 3?"
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def parse(text: str, tools: Sequence[Mapping[str, Any]]) -> ParsedAnswer:
    """Hermes' format of calls."""
    content, *written = text.split("<tool_call>")
    made = [json.loads(call.removesuffix("</tool_call>")) for call in written]
    calls = [ToolCall(call["name"], json.dumps(call["arguments"])) for call in made]
    return ParsedAnswer(content, calls)


@asynccontextmanager
async def calculator(*script: str) -> AsyncIterator[World]:
    """`script`: what the model says, turn by turn."""
    params = {"max_new_tokens": 9_999}
    async with open_world(*(script or (ADD, SAID)), parse=parse, params=params) as world:
        yield world


def trained(world: World) -> list[str]:
    """The sampled text of every branch."""
    branches = world.session.tree.branches()
    texts = []
    for branch in branches:
        sampled = branch.tokens[branch.num_prompt :]
        kept = [t for t, is_kept in zip(sampled, branch.loss_mask, strict=True) if is_kept]
        texts.append(bytes(kept).decode())
    return texts


def read(world: World, turn: int) -> str:
    """What the model read before it said its `turn`th."""
    tokens, _, _ = world.client.asked[turn]
    return bytes(tokens).decode()
