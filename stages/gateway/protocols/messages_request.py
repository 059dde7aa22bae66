"""/v1/messages, Anthropic's protocol, the request: content blocks to messages, tools, settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

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
    "container": "code runs where the client runs, not here",
    "mcp_servers": "connect them to the client, and send their tools",
}
ROLES = {"user": "user", "assistant": "assistant", "system": "system"}
CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": ""}
# How a call whose arguments are no JSON object is written into `input`, which must be one.
UNPARSED = "INVALID_JSON"

Messages = list[dict[str, Any]]


def chat_request(body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat completion that asks for the same. Raises RequestError for what is not served."""
    fields.a_flag(body, "stream")
    chat = {
        **prompt_request(body),
        "max_tokens": fields.a_count(body.get("max_tokens"), "max_tokens"),
    }
    if (stops := body.get("stop_sequences")) is not None:
        for at, stop in enumerate(fields.a_list(stops, "stop_sequences")):
            fields.a_name(stop, f"stop_sequences[{at}]")
        chat["stop"] = stops
    return chat


def prompt_request(body: Mapping[str, Any]) -> dict[str, Any]:
    """What of a request the prompt is made of, which is all that /v1/messages/count_tokens has.

    Raises RequestError for what is not served."""
    fields.refuse(body, REFUSED)
    messages: Messages = []
    if (system := body.get("system")) is not None and (said := _text(system, "system")):
        messages.append(system_message(said))
    role = None
    for message, where in fields.objects(body.get("messages"), "messages"):
        role = fields.one_of(message.get("role"), f"{where}.role", ROLES)
        messages += _messages(role, message.get("content"), f"{where}.content")
    if role is None:
        raise RequestError("messages is empty; expected at least one", param="messages")
    if role == "assistant":
        raise RequestError(
            "the last of messages is the assistant's; expected the user's: an answer that is begun"
            " by the client is not served",
            param="messages",
        )
    chat: dict[str, Any] = {"messages": messages, **_settings(body)}
    if (model := fields.optional_string(body, "model")) is not None:
        chat["model"] = model
    return chat


def _messages(role: str, content: object, where: str) -> Messages:
    if role == "system":
        return [system_message(_text(content, where))]
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    return (_user if role == "user" else _assistant)(content, where)


def _user(blocks: object, where: str) -> Messages:
    """Results of tools become messages of their own, the text between them the user's."""
    messages: Messages = []
    texts: list[str] = []
    for block, place in fields.objects(blocks, where):
        if block.get("type") == "tool_result":
            if texts:
                messages.append(user_message("\n".join(texts)))
                texts = []
            call_id = fields.a_name(block.get("tool_use_id"), f"{place}.tool_use_id")
            given = block.get("content")
            text = "" if given is None else _text(given, f"{place}.content")
            messages.append(tool_message(call_id, text))
        else:
            texts.append(_block_text(block, place, "text or tool_result"))
    if texts or not messages:
        messages.append(user_message("\n".join(texts)))
    return messages


def _assistant(blocks: object, where: str) -> Messages:
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[dict[str, Any]] = []
    for block, place in fields.objects(blocks, where):
        kind = block.get("type")
        if kind == "tool_use":
            calls.append(_call(block, place))
        elif kind == "thinking":
            reasoning.append(fields.a_string(block.get("thinking"), f"{place}.thinking"))
        elif kind != "redacted_thinking":  # another server's, which says nothing here
            texts.append(_block_text(block, place, "text, thinking or tool_use"))
    return [assistant_message("".join(texts), calls, "".join(reasoning))]


def _call(block: dict[str, Any], where: str) -> dict[str, Any]:
    given = fields.an_object(block.get("input"), f"{where}.input")
    if given.keys() == {UNPARSED} and isinstance(given[UNPARSED], str):
        arguments = given[UNPARSED]
    else:
        arguments = orjson.dumps(given).decode()
    call_id = fields.a_name(block.get("id"), f"{where}.id")
    return tool_call(call_id, fields.a_name(block.get("name"), f"{where}.name"), arguments)


def _text(content: object, where: str) -> str:
    """The text of a string, or of a list of text blocks, a line each."""
    if isinstance(content, str):
        return content
    blocks = fields.objects(content, where)
    return "\n".join(_block_text(block, place, "text") for block, place in blocks)


def _block_text(block: dict[str, Any], where: str, expected: str) -> str:
    if block.get("type") != "text":
        raise fields.wrong(f"{where}.type", block.get("type"), f"{expected}; no other is served")
    return fields.a_string(block.get("text"), f"{where}.text")


def _settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """Tools, their choice and the answer's format."""
    settings: dict[str, Any] = {}
    if (tools := body.get("tools")) is not None:
        settings["tools"] = [_tool(tool, where) for tool, where in fields.objects(tools, "tools")]
    if (choice := body.get("tool_choice")) is not None:
        settings["tool_choice"] = _tool_choice(fields.an_object(choice, "tool_choice"))
    output = body.get("output_config")
    if output is not None and fields.an_object(output, "output_config").get("format") is not None:
        form = fields.an_object(output["format"], "output_config.format")
        schema = fields.an_object(form.get("schema"), "output_config.format.schema")
        settings["response_format"] = json_format("output", schema)
    return settings


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise fields.wrong(
            f"{where}.type", tool["type"], "custom: tools run where the client runs, not here"
        )
    schema = fields.an_object(tool.get("input_schema"), f"{where}.input_schema")
    name = fields.a_name(tool.get("name"), f"{where}.name")
    return function_tool(name, fields.optional_string(tool, "description", where), schema)


def _tool_choice(choice: dict[str, Any]) -> str | dict[str, Any]:
    kind = fields.one_of(choice.get("type"), "tool_choice.type", CHOICES)
    if choice["type"] == "tool":
        return named_choice(fields.a_name(choice.get("name"), "tool_choice.name"))
    return kind
