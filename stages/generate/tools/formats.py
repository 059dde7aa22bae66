"""How models write calls: the formats of Hermes and Qwen, Qwen3-Coder, GLM-4.5, Llama 3 and
DeepSeek V3, read so that a call that cannot be read is told from an answer without one.

Sources: the chat templates that the models' authors publish."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.core.errors import ConfigError
from stages.generate.tools.calls import (
    Call,
    CallParser,
    GarbledCall,
    ParsedTurn,
    call_of,
    call_of_json,
    named_call,
)
from stages.generate.tools.tool import Tool

_THOUGHT = "</think>"
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_GLM_PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_DEEPSEEK = tuple(
    f"<\uff5c{words.replace(' ', '▁')}\uff5c>"
    for words in ("tool calls begin", "tool call begin", "tool sep", "tool call end")
)
_FENCE = re.compile(r"\s*(\S+)\s*```json\s*(.*?)\s*```\s*", re.DOTALL)
_PYTHON = {"True": True, "False": False, "None": None}  # as Jinja writes them


def hermes(text: str, tools: Sequence[Tool]) -> ParsedTurn:
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them."""
    return _in_tags(text, lambda inner: call_of_json(inner.strip()))


def qwen3_coder(text: str, tools: Sequence[Tool]) -> ParsedTurn:
    """<tool_call><function=NAME><parameter=KEY>value</parameter>...</function></tool_call>"""

    def read(inner: str) -> Call | GarbledCall:
        match = re.fullmatch(r"\s*<function=([^>\n]+)>(.*)</function>\s*", inner, re.DOTALL)
        if match is None:
            return GarbledCall(text=inner, error="expected <function=NAME>...</function>")
        return _typed_call(match[1].strip(), match[2], _PARAMETER, inner, tools)

    return _in_tags(text, read)


def glm45(text: str, tools: Sequence[Tool]) -> ParsedTurn:
    """<tool_call>NAME<arg_key>KEY</arg_key><arg_value>value</arg_value>...</tool_call>"""

    def read(inner: str) -> Call | GarbledCall:
        name, found, _ = inner.partition("<arg_key>")
        if not name.strip():
            return GarbledCall(text=inner, error="no name of a tool ahead of the first <arg_key>")
        return _typed_call(
            name.strip(), inner[len(name) :] if found else "", _GLM_PAIR, inner, tools
        )

    return _in_tags(text, read)


def llama3(text: str, tools: Sequence[Tool]) -> ParsedTurn:
    """{"name": ..., "parameters": {...}}, behind <|python_tag|> or as the whole answer; several are
    parted by semicolons."""
    content, tag, rest = text.partition("<|python_tag|>")
    if not tag:
        if not re.match(r'\s*\{\s*"(name|type)"', text):
            return ParsedTurn(text)
        content, rest = "", text
    calls: list[Call | GarbledCall] = []
    decoder, rest = json.JSONDecoder(), rest.strip()
    while rest:
        try:
            said, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError) as error:
            calls.append(GarbledCall(text=rest, error=f"not valid JSON: {error}"))
            break
        calls.append(call_of(said, rest[:end], arguments="parameters"))
        rest = rest[end:].lstrip(" \n;")
    return ParsedTurn(content, tuple(calls))


def deepseekv3(text: str, tools: Sequence[Tool]) -> ParsedTurn:
    """V3's: the name behind function<sep>, the arguments in a JSON fence. V3.1's: the name ahead of
    <sep>, the arguments behind it."""
    section, begin, separator, end = _DEEPSEEK
    head, thought, tail = text.rpartition(_THOUGHT)
    content, found, rest = tail.partition(section)
    if not found:
        return ParsedTurn(text)
    calls: list[Call | GarbledCall] = []
    for piece in rest.split(begin)[1:]:
        inner, closed, _ = piece.partition(end)
        before, _, behind = inner.partition(separator)
        fenced = _FENCE.fullmatch(behind)
        if not closed:
            calls.append(GarbledCall(text=inner, error=f"it does not end with {end}"))
        elif fenced:
            calls.append(named_call(fenced[1], fenced[2], inner))
        else:
            calls.append(named_call(before.strip(), behind.strip(), inner))
    if not calls:
        calls.append(GarbledCall(text=rest, error=f"no {begin} behind {section}"))
    return ParsedTurn(head + thought + content, tuple(calls))


PARSERS: Mapping[str, CallParser] = {
    "hermes": hermes,
    "qwen": hermes,
    "qwen25": hermes,
    "qwen3_coder": qwen3_coder,
    "glm45": glm45,
    "llama3": llama3,
    "deepseekv3": deepseekv3,
    "deepseekv31": deepseekv3,
}


def detect_format(chat_template: str) -> str:
    """Which of `PARSERS` reads what a model with this chat template writes. Raises ConfigError
    where the template does not tell."""
    for mark, name in (
        ("<parameter=", "qwen3_coder"),
        ("<arg_key>", "glm45"),
        (_DEEPSEEK[0], "deepseekv3"),
        ("<tool_call>", "hermes"),
        ("<|python_tag|>", "llama3"),
    ):
        if mark in chat_template:
            return name
    if "tool_calls" in chat_template and '"parameters": ' in chat_template:
        return "llama3"  # 3.2's, which has no python tag
    raise ConfigError(
        "the model's chat template does not tell how it writes tool calls: say"
        f" --tool-call-parser, {', '.join(sorted(PARSERS))} or one of SGLang's"
    )


def _in_tags(text: str, read: Callable[[str], Call | GarbledCall]) -> ParsedTurn:
    """The calls between <tool_call> and </tool_call>; what is only thought of is none."""
    head, thought, tail = text.rpartition(_THOUGHT)
    if not thought and "<think>" in text:
        return ParsedTurn(text)
    content, *pieces = tail.split("<tool_call>")
    calls = []
    for piece in pieces:
        inner, closed, _ = piece.partition("</tool_call>")
        calls.append(
            read(inner)
            if closed
            else GarbledCall(text=inner, error="it does not end with </tool_call>")
        )
    return ParsedTurn(head + thought + content, tuple(calls))


def _typed_call(
    name: str, text: str, pair: re.Pattern[str], whole: str, tools: Sequence[Tool]
) -> Call | GarbledCall:
    """A call whose values are written as bare text: the tool's schema says what they are."""
    if left := pair.sub("", text).strip():
        return GarbledCall(text=whole, error=f"{left[:80]!r} is no part of an argument")
    tool = next((tool for tool in tools if tool.name == name), None)
    known = {} if tool is None else tool.parameters.get("properties", {})
    return Call(
        name=name,
        arguments={
            key.strip(): _typed(value, known.get(key.strip(), {}))
            for key, value in pair.findall(text)
        },
    )


def _typed(value: str, schema: Mapping[str, Any]) -> Any:
    kinds = _kinds(schema)
    if "null" in kinds and value.strip() in ("null", "None"):
        return None
    if not kinds or "string" in kinds:
        return value
    if value.strip() in _PYTHON:
        return _PYTHON[value.strip()]
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value  # the check against the schema says so to the model


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    kind = schema.get("type", [])
    found = {kind} if isinstance(kind, str) else set(kind)
    for each in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        found |= _kinds(each)
    return found
