"""/v1/messages: what Anthropic's client sends becomes messages, tools and settings of a chat."""

import re
from typing import Any

import pytest

from stages.gateway.errors import RequestError
from stages.gateway.protocols.messages_request import chat_request, prompt_request
from tests.unit.stages.gateway.protocols.chats import call

HI = {"role": "user", "content": "Hi"}
USE = {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 2}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "5"}
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said, "cache_control": {"type": "ephemeral"}}


def messages(*given: Any, **body: Any) -> list[dict[str, Any]]:
    asked = chat_request({"max_tokens": 9, "messages": list(given), **body})["messages"]
    assert isinstance(asked, list)
    return asked


@pytest.mark.parametrize(("system", "kept"), [("A", "A"), ([text("A"), text("B")], "A\nB")])
def test_the_system_comes_first(system: Any, kept: str) -> None:
    assert messages(HI, system=system) == [{"role": "system", "content": kept}, HI]


def test_a_turn_and_what_its_tools_returned() -> None:
    thinking = {"type": "thinking", "thinking": "Sum?", "signature": ""}
    hidden = {"type": "redacted_thinking", "data": "x"}
    turn = {"role": "assistant", "content": [thinking, hidden, text("I "), text("add."), USE]}
    told = {"role": "user", "content": [RESULT, text("And?"), text("Well?")]}
    assert messages(HI, turn, told) == [
        HI,
        {
            "role": "assistant",
            "content": "I add.",
            "reasoning_content": "Sum?",
            "tool_calls": [call("t1", "add", '{"a":2}')],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "5"},
        {"role": "user", "content": "And?\nWell?"},
    ]


@pytest.mark.parametrize(
    ("content", "kept"), [(None, ""), ("5", "5"), ([text("5"), text("6")], "5\n6")]
)
def test_what_a_tool_returned_is_text(content: Any, kept: str) -> None:
    result = {**RESULT, "content": content, "is_error": True}
    assert messages({"role": "user", "content": [result]})[0]["content"] == kept


def test_a_turn_of_nothing_is_still_a_turn() -> None:
    assert messages(HI, {"role": "assistant", "content": []}, HI)[1] == {
        "role": "assistant",
        "content": "",
    }


def test_a_system_message_may_come_later() -> None:
    assert messages(HI, {"role": "system", "content": "B"}, HI)[1] == {
        "role": "system",
        "content": "B",
    }


def test_settings_have_their_chat_names() -> None:
    schema = {"type": "object"}
    body = {
        "model": "m",
        "max_tokens": 9,
        "messages": [HI],
        "stop_sequences": ["\n"],
        "stream": True,
        "tools": [TOOL],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": schema}},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "metadata": {"user_id": "u"},
    }
    asked = chat_request(body)
    assert asked.pop("messages") == [HI]
    assert asked == {
        "model": "m",
        "max_tokens": 9,
        "stop": ["\n"],
        "tools": [
            {
                "type": "function",
                "function": {"name": "add", "description": "Adds.", "parameters": schema},
            }
        ],
        "tool_choice": "required",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": schema},
        },
    }


def test_counting_needs_no_max_tokens() -> None:
    assert prompt_request({"messages": [HI], "system": "A"})["messages"][1] == HI
    with pytest.raises(RequestError, match="max_tokens is None; expected a whole number"):
        chat_request({"messages": [HI]})


@pytest.mark.parametrize(
    ("choice", "kept"),
    [("auto", "auto"), ("none", "none"), ("tool", {"type": "function", "function": {"name": "f"}})],
)
def test_the_choice_of_a_tool(choice: str, kept: Any) -> None:
    asked = prompt_request({"messages": [HI], "tool_choice": {"type": choice, "name": "f"}})
    assert asked["tool_choice"] == kept


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


PLACE = "messages[0].content[0]"


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "messages", "messages is None; expected a list"),
        ({"messages": []}, "messages", "messages is empty; expected at least one"),
        ({"messages": ["Hi"]}, "messages[0]", "'Hi'; expected an object"),
        ({"messages": [{"role": "tool"}]}, "messages[0].role", "'tool'; expected one of user"),
        ({"messages": [{"role": ["user"]}]}, "messages[0].role", "['user']; expected"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "None; expected a list"),
        (user({"type": "image", "source": {}}), f"{PLACE}.type", "'image'; expected text or tool_"),
        (user({"type": "document"}), f"{PLACE}.type", "'document'; expected text"),
        (user({**RESULT, "tool_use_id": 3}), f"{PLACE}.tool_use_id", "3; expected a string"),
        (
            user({**RESULT, "content": [{"type": "image"}]}),
            f"{PLACE}.content[0].type",
            "'image'; expected text; no other is served",
        ),
        (
            {"messages": [HI, {"role": "assistant", "content": "So"}]},
            "messages",
            "the last of messages is the assistant's",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{**USE, "input": "a"}]}]},
            f"{PLACE}.input",
            "'a'; expected an object",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]},
            f"{PLACE}.type",
            "'server_tool_use'; expected text, thinking or tool_use",
        ),
        ({"messages": [HI], "system": 3}, "system", "3; expected a list"),
        (
            {"messages": [HI], "tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools[0].type",
            "'web_search_20250305'; expected custom",
        ),
        ({"messages": [HI], "tools": [{"name": "f"}]}, "tools[0].input_schema", "an object"),
        ({"messages": [HI], "tool_choice": {"type": "some"}}, "tool_choice.type", "'some'"),
        ({"messages": [HI], "stop_sequences": [""]}, "stop_sequences[0]", "at least one char"),
        ({"messages": [HI], "stream": "no"}, "stream", "expected true or false"),
        ({"messages": [HI], "mcp_servers": [{}]}, "mcp_servers", "is not served"),
        ({"messages": [HI], "container": "c"}, "container", "is not served"),
    ],
)
def test_what_is_not_served_is_refused_by_name(body: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)) as raised:
        chat_request({"max_tokens": 9, **body})
    assert raised.value.param == param
