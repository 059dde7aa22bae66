"""/v1/responses, the request: input items to messages, function tools, settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stages.gateway.errors import RequestError
from stages.gateway.protocols import fields
from stages.gateway.protocols.turns import (
    assistant_message,
    function_tool,
    json_format,
    named_choice,
    system_message,
    tool_call,
    tool_message,
    user_message,
)

REFUSED = {
    "background": "a response is made while its client waits",
    "conversation": "send previous_response_id, or all input items",
    "prompt": "there are no stored prompts; send input and instructions",
    "top_logprobs": "only the log-probs of the sampled tokens are known",
}
LOGPROBS = "message.output_text.logprobs"  # of `include`
TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")
ROLES = {"user": "user", "system": "system", "developer": "system", "assistant": "assistant"}
CHOICES = {"auto": "auto", "none": "none", "required": "required"}

Messages = list[dict[str, Any]]


def chat_request(body: Mapping[str, Any], before: Messages) -> dict[str, Any]:
    """The chat completion that asks for the same. `before`: the messages up to and with the
    response that previous_response_id names; its instructions are not among them.

    Raises RequestError for what is not served."""
    fields.refuse(body, REFUSED)
    if body.get("truncation") not in (None, "disabled"):
        raise fields.wrong("truncation", body["truncation"], "disabled: no turn is dropped unsaid")
    instructions = fields.optional_string(body, "instructions")
    messages = [system_message(instructions)] if instructions else []
    messages += [*before, *input_messages(body)]
    if not messages:
        raise RequestError("input is empty; expected at least one item", param="input")
    fields.a_flag(body, "stream")
    chat: dict[str, Any] = {"messages": messages, **_settings(body)}
    if (model := fields.optional_string(body, "model")) is not None:
        chat["model"] = model
    if (limit := body.get("max_output_tokens")) is not None:
        chat["max_tokens"] = fields.a_count(limit, "max_output_tokens")
    return chat


def input_messages(body: Mapping[str, Any]) -> Messages:
    """The messages of `input` alone."""
    given = body.get("input")
    if isinstance(given, str):
        return [user_message(given)]
    reader = _Items()
    for item, where in fields.objects([] if given is None else given, "input"):
        reader.add(item, where)
    return reader.messages


class _Items:
    """Reads input items. The items of one turn of the model (reasoning, message, calls) follow
    each other and become one message."""

    def __init__(self) -> None:
        self.messages: Messages = []
        self._reasoning = ""  # of the turn whose other items are still to come
        self._turn: dict[str, Any] | None = None  # the last message, if it is the model's
        self._readers: dict[str, Callable[[dict[str, Any], str], None]] = {
            "message": self._message,
            "reasoning": self._reason,
            "function_call": self._call,
            "function_call_output": self._output,
        }

    def add(self, item: dict[str, Any], where: str) -> None:
        kind = item.get("type", "message")
        if not isinstance(kind, str) or kind not in self._readers:
            raise fields.wrong(f"{where}.type", kind, f"one of {', '.join(self._readers)}")
        self._readers[kind](item, where)

    def _message(self, item: dict[str, Any], where: str) -> None:
        role = fields.one_of(item.get("role"), f"{where}.role", ROLES)
        between = "" if role == "assistant" else "\n"
        text = text_of(item.get("content"), f"{where}.content", between)
        if role == "assistant":
            self._begin_turn(text)
        else:
            self._append({"role": role, "content": text})

    def _reason(self, item: dict[str, Any], where: str) -> None:
        """Kept if it has text, as ours has; what another server encrypted says nothing here."""
        content = item.get("content") or item.get("summary") or []
        self._turn = None
        self._reasoning += text_of(content, f"{where}.content", "")

    def _call(self, item: dict[str, Any], where: str) -> None:
        call = tool_call(
            fields.a_name(item.get("call_id"), f"{where}.call_id"),
            fields.a_name(item.get("name"), f"{where}.name"),
            fields.a_string(item.get("arguments"), f"{where}.arguments"),
        )
        turn = self._begin_turn("") if self._turn is None else self._turn
        turn.setdefault("tool_calls", []).append(call)

    def _output(self, item: dict[str, Any], where: str) -> None:
        call_id = fields.a_name(item.get("call_id"), f"{where}.call_id")
        self._append(tool_message(call_id, text_of(item.get("output"), f"{where}.output", "\n")))

    def _begin_turn(self, text: str) -> dict[str, Any]:
        turn = assistant_message(text, reasoning=self._reasoning)
        self._append(turn)
        self._turn = turn
        return turn

    def _append(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self._reasoning, self._turn = "", None


def text_of(content: object, where: str, between: str) -> str:
    """The text of a content that is a string or a list of text parts, joined with `between`."""
    if isinstance(content, str):
        return content
    texts = []
    for part, place in fields.objects(content, where):
        kind = part.get("type")
        if kind not in TEXT_PARTS:
            raise fields.wrong(f"{place}.type", kind, "a part that is text; no other is served")
        name = "refusal" if kind == "refusal" else "text"
        texts.append(fields.a_string(part.get(name), f"{place}.{name}"))
    return between.join(texts)


def _settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """Tools, their choice, the answer's format and log-probs."""
    settings: dict[str, Any] = {}
    if (tools := body.get("tools")) is not None:
        settings["tools"] = [_tool(tool, where) for tool, where in fields.objects(tools, "tools")]
    if (choice := body.get("tool_choice")) is not None:
        settings["tool_choice"] = _tool_choice(choice)
    if (text := body.get("text")) is not None:
        settings |= _format(fields.an_object(text, "text"))
    if (include := body.get("include")) is not None:
        settings["logprobs"] = LOGPROBS in fields.a_list(include, "include")
    return settings


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise fields.wrong(
            f"{where}.type", tool.get("type"), "function: tools run where the client runs, not here"
        )
    parameters = tool.get("parameters")
    if parameters is not None:
        fields.an_object(parameters, f"{where}.parameters")
    name = fields.a_name(tool.get("name"), f"{where}.name")
    return function_tool(name, fields.optional_string(tool, "description", where), parameters)


def _tool_choice(choice: object) -> str | dict[str, Any]:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return named_choice(fields.a_name(choice.get("name"), "tool_choice.name"))
    return fields.one_of(choice, "tool_choice", CHOICES)


def _format(text: dict[str, Any]) -> dict[str, Any]:
    """The `response_format` of `text.format`; nothing for plain text."""
    if text.get("format") is None:
        return {}
    form = fields.an_object(text["format"], "text.format")
    kind = form.get("type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if kind != "json_schema":
        raise fields.wrong("text.format.type", kind, "text, json_object or json_schema")
    schema = fields.an_object(form.get("schema"), "text.format.schema")
    name = fields.a_name(form.get("name"), "text.format.name")
    return {"response_format": json_format(name, schema)}
