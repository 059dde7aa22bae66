"""The messages of a chat, from OpenAI's form to the one that chat templates take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from stages.gateway.errors import RequestError

# as templates know them
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_TEXTS = ("text", "input_text", "output_text")  # types of a part of a message


def read_messages(given: Any) -> tuple[dict[str, Any], ...]:
    """Raises RequestError."""
    if not isinstance(given, list) or not given:
        raise RequestError("messages: expected a list with at least one message", param="messages")
    return tuple(_message(i, message) for i, message in enumerate(given))


def _message(place: int, given: Any) -> dict[str, Any]:
    role = given.get("role") if isinstance(given, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise _wrong(place, given, f"an object with a role of {', '.join(ROLES)}")
    out: dict[str, Any] = {"role": ROLES[role], "content": _content(place, given)}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if isinstance(given.get(name), str):
            out[name] = given[name]
    calls = given.get("tool_calls")
    if role == "assistant" and calls:
        if not isinstance(calls, list):
            raise _wrong(place, given, "a list of tool_calls")
        out["tool_calls"] = [_call(place, call) for call in calls]
    return out


def _content(place: int, message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message["role"] == "assistant":
        return ""
    if not isinstance(content, list):
        raise _wrong(place, message, "content: a text, or a list of parts")
    return "".join(_text(place, part) for part in content)


def _text(place: int, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    text = (
        part.get("text") if kind in _TEXTS else part.get("refusal") if kind == "refusal" else None
    )
    if not isinstance(text, str):
        raise _wrong(place, part, "a part with a text (images are not served)")
    return text


def _call(place: int, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _wrong(place, call, 'a tool call, {"function": {"name": ..., "arguments": ...}}')
    arguments = _arguments(place, function.get("arguments"))
    out = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **out} if isinstance(call.get("id"), str) else out


def _arguments(place: int, given: Any) -> Any:
    """As an object, which templates write down in the model's own way."""
    if isinstance(given, dict | None):
        return given or {}
    if not isinstance(given, str):
        raise _wrong(place, given, "the arguments of a tool call: JSON, in a text")
    try:
        parsed = orjson.loads(given or "{}")
    except orjson.JSONDecodeError:
        return given  # what the model has written need not be JSON
    return parsed if isinstance(parsed, dict) else given


def _wrong(place: int, given: Any, expected: str) -> RequestError:
    return RequestError(f"messages[{place}]: {given!r:.80}; expected {expected}", param="messages")
