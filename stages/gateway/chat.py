"""What a chat completion asks for, read from OpenAI's body: the one form in which the gateway knows
requests, whichever protocol they came by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from stages.gateway.errors import RequestError
from stages.gateway.messages import read_messages

MAX_CHOICES = 128
TOOL_CHOICES = ("none", "auto", "required")
FORMATS = ("text", "json_object", "json_schema")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """`messages` as a chat template takes them, or a `prompt`, text or tokens that no template is
    put around."""

    model: str
    messages: tuple[dict[str, Any], ...] = ()
    prompt: str | list[int] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    calls_tools: bool = True
    max_tokens: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)  # SGLang's, over those of the run
    num_choices: int = 1
    logprobs: bool = False
    stream: bool = False
    include_usage: bool = False


def read_chat(body: Any) -> ChatRequest:
    """Raises RequestError with what was given and what was expected.

    How the model is sampled (temperature, top_p, top_k, penalties, seed) is the run's to say: what
    the agent asks of it is not looked at, and neither are fields that are not known."""
    if not isinstance(body, dict):
        raise RequestError(f"the body is {said(body)}; expected a JSON object")
    prompt = _prompt(body.get("prompt"))
    if (prompt is None) == (body.get("messages") is None):
        raise RequestError("expected messages, a list of the chat's messages", param="messages")
    tools = _tools(body.get("tools"))
    return ChatRequest(
        model=_model(body.get("model")),
        messages=() if prompt is not None else read_messages(body["messages"]),
        prompt=prompt,
        tools=tools,
        calls_tools=bool(tools) and _calls_tools(body.get("tool_choice")),
        max_tokens=_max_tokens(body),
        params={**_stops(body.get("stop")), **_format(body.get("response_format"))},
        num_choices=_number(body, "n", 1, MAX_CHOICES) or 1,
        logprobs=_logprobs(body),
        stream=_flag(body, "stream"),
        include_usage=_flag(_object(body, "stream_options"), "include_usage"),
    )


def said(value: Any) -> str:
    """A value in an error's words, of bounded length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _model(model: Any) -> str:
    if not isinstance(model, str | None):
        raise RequestError(f"model is {said(model)}; expected a string", param="model")
    return model or ""


def _prompt(prompt: Any) -> str | list[int] | None:
    if prompt is None or (isinstance(prompt, str) and prompt):
        return prompt
    if isinstance(prompt, list) and prompt and all(type(t) is int and t >= 0 for t in prompt):
        return prompt
    raise RequestError(
        f"prompt is {said(prompt)}; expected a text, or a list of token ids", param="prompt"
    )


def _tools(tools: Any) -> tuple[dict[str, Any], ...]:
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise RequestError(f"tools is {said(tools)}; expected a list", param="tools")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if (
            not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
            or not isinstance(function.get("parameters", {}), dict | None)
        ):
            raise RequestError(
                f"tools[{i}] is {said(tool)}; expected"
                ' {"type": "function", "function": {"name": ..., "parameters": {...}}}',
                param="tools",
            )
    return tuple({"type": "function", "function": _described(t["function"])} for t in tools)


def _described(function: dict[str, Any]) -> dict[str, Any]:
    """With all that chat templates speak of."""
    nothing = {"type": "object", "properties": {}}
    described = {"description": function.get("description") or ""}
    return {**function, **described, "parameters": function.get("parameters") or nothing}


def _calls_tools(choice: Any) -> bool:
    """May an answer call them? That it must is left to the model, which learns it."""
    if isinstance(choice, dict) and isinstance(choice.get("type"), str):
        return True
    if choice is None or choice in TOOL_CHOICES:
        return choice != "none"
    raise RequestError(
        f"tool_choice is {said(choice)}; expected one of {', '.join(TOOL_CHOICES)}, or an object",
        param="tool_choice",
    )


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    asked = [_number(body, name, 1) for name in ("max_completion_tokens", "max_tokens")]
    return min((n for n in asked if n is not None), default=None)


def _stops(stop: Any) -> dict[str, Any]:
    stops = [stop] if isinstance(stop, str) else stop
    if stops is None or stops == []:
        return {}
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise RequestError(
            f"stop is {said(stop)}; expected a text, or a list of texts", param="stop"
        )
    return {"stop": stops}


def _format(asked: Any) -> dict[str, Any]:
    """As SGLang is told of it."""
    if asked is None:
        return {}
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": '{"type": "object"}'}
    described = asked.get("json_schema") if kind == "json_schema" else None
    schema = described.get("schema") if isinstance(described, dict) else None
    if isinstance(schema, dict):
        return {"json_schema": orjson.dumps(schema).decode()}
    raise RequestError(
        f"response_format is {said(asked)}; expected a type of {', '.join(FORMATS)}, the last with"
        ' {"json_schema": {"name": ..., "schema": {...}}}',
        param="response_format",
    )


def _logprobs(body: Mapping[str, Any]) -> bool:
    if _number(body, "top_logprobs", 0):
        raise RequestError(
            "top_logprobs: only the log-probs of the sampled tokens are known here; expected 0",
            param="top_logprobs",
        )
    return _flag(body, "logprobs")


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if not isinstance(value, dict | None):
        raise RequestError(f"{name} is {said(value)}; expected an object", param=name)
    return value or {}


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise RequestError(f"{name} is {said(value)}; expected true or false", param=name)
    return bool(value)


def _number(body: Mapping[str, Any], name: str, least: int, most: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or value < least or (most is not None and value > most):
        expected = f"at least {least}" if most is None else f"from {least} to {most}"
        raise RequestError(
            f"{name} is {said(value)}; expected a whole number, {expected}", param=name
        )
    return value
