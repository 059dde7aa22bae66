"""The calls that a model has written into a turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from stages.generate.tools.tool import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One that can be read. Whether there is such a tool, and whether it takes such arguments, is
    not said."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GarbledCall:
    """One that cannot be read. `error`: why, in words for the model."""

    text: str
    error: str


class ParsedTurn(NamedTuple):
    content: str  # what stands ahead of the first call, thinking included
    calls: tuple[Call | GarbledCall, ...] = ()


# of a turn's text (special tokens included, but for the one that ended it) and of the tools
CallParser = Callable[[str, Sequence[Tool]], ParsedTurn]


def call_of_json(text: str, *, arguments: str = "arguments") -> Call | GarbledCall:
    """The call {"name": ..., "arguments": {...}}. `arguments`: how the second member is called."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        return GarbledCall(text=text, error=f"not valid JSON: {error}")
    return call_of(said, text, arguments=arguments)


def call_of(said: Any, text: str, *, arguments: str = "arguments") -> Call | GarbledCall:
    expected = f'expected {{"name": "...", "{arguments}": {{...}}}}'
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        return GarbledCall(text=text, error=f"no name of a tool: {expected}")
    given = said.get(arguments, said.get("parameters", said.get("arguments", {})))
    if isinstance(given, str):  # as OpenAI's API has it
        return named_call(said["name"], given, text)
    if not isinstance(given, dict):
        return GarbledCall(text=text, error=f"the {arguments} are no JSON object: {expected}")
    return Call(name=said["name"], arguments=given)


def named_call(name: str, arguments: str, text: str) -> Call | GarbledCall:
    """A call whose name is known and whose arguments are the text of a JSON object."""
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        return GarbledCall(text=text, error=f"the arguments are not valid JSON: {error}")
    if not isinstance(given, dict):
        return GarbledCall(text=text, error="the arguments are no JSON object")
    return Call(name=name, arguments=given)
