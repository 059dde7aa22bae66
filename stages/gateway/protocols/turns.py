"""Parts of a chat in the gateway's own form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

EMPTY_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


def system_message(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user_message(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant_message(
    text: str, calls: list[dict[str, Any]] | None = None, reasoning: str = ""
) -> dict[str, Any]:
    """A turn of the model; what it does not have is left out."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def tool_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """`arguments`: JSON text."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool_message(call_id: str, text: str) -> dict[str, Any]:
    """What a tool returned."""
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def function_tool(
    name: str, description: str | None, parameters: dict[str, Any] | None
) -> dict[str, Any]:
    """A function that the client runs. `parameters`: JSON schema of an object."""
    function: dict[str, Any] = {"name": name, "parameters": parameters or EMPTY_PARAMETERS}
    if description:
        function["description"] = description
    return {"type": "function", "function": function}


def named_choice(name: str) -> dict[str, Any]:
    """The choice of one tool."""
    return {"type": "function", "function": {"name": name}}


def json_format(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The format of an answer that is JSON of this schema."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


def arguments_object(arguments: str) -> dict[str, Any] | None:
    """The arguments of a call, None if the model wrote no JSON object."""
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def tokens_used(chat: Mapping[str, Any]) -> tuple[int, int, int]:
    """(prompt, of it cached, answer) tokens of a `chat.completion`."""
    usage = chat["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return usage["prompt_tokens"], cached, usage["completion_tokens"]


def number_of(chat: Mapping[str, Any]) -> str:
    """What the ids of an answer have in common in all protocols."""
    return str(chat["id"]).removeprefix("chatcmpl-")
