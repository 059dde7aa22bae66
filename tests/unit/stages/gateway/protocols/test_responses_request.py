"""/v1/responses: what a client sends becomes messages, tools and settings of a chat."""

import re
from typing import Any

import pytest

from stages.gateway.errors import RequestError
from stages.gateway.past import Past
from stages.gateway.protocols.responses import Responses
from stages.gateway.protocols.responses_request import chat_request
from tests.unit.stages.gateway.protocols.chats import call, chat_answer

USER = {"role": "user", "content": "Add 2 and 3."}
CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 2}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "5"}
SAID = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "I add."}],
}
THOUGHT = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "Sum?"}],
}
TOOL = {
    "type": "function",
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "strict": True,
}


def messages(items: Any, **body: Any) -> list[dict[str, Any]]:
    asked = chat_request({"input": items, **body}, [])["messages"]
    assert isinstance(asked, list)
    return asked


def test_text_is_what_the_user_says_after_the_instructions() -> None:
    assert messages("Hi", instructions="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_the_items_of_a_turn_are_one_message() -> None:
    second = {**CALL, "call_id": "c2"}
    assert messages([USER, THOUGHT, SAID, CALL, second, OUTPUT, USER]) == [
        USER,
        {
            "role": "assistant",
            "content": "I add.",
            "reasoning_content": "Sum?",
            "tool_calls": [call("c1", "add", '{"a": 2}'), call("c2", "add", '{"a": 2}')],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "5"},
        USER,
    ]


def test_two_turns_stay_two_messages() -> None:
    roles = [m["role"] for m in messages([USER, CALL, OUTPUT, CALL, OUTPUT, SAID])]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]


def test_reasoning_begins_a_turn() -> None:
    first, second = messages([SAID, THOUGHT, CALL])
    assert "tool_calls" not in first and second["reasoning_content"] == "Sum?"


def test_encrypted_reasoning_says_nothing() -> None:
    item = {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "x"}
    assert messages([USER, item, SAID])[1] == {"role": "assistant", "content": "I add."}


def test_parts_of_an_input_are_a_line_each() -> None:
    parts = [{"type": "input_text", "text": text} for text in ("a", "b")]
    assert messages([{"role": "developer", "content": parts}]) == [
        {"role": "system", "content": "a\nb"}
    ]


def test_tools_are_functions_of_the_chat() -> None:
    asked = chat_request({"input": "a", "tools": [TOOL, {"type": "function", "name": "now"}]}, [])
    adds, now = asked["tools"]
    assert adds == {
        "type": "function",
        "function": {"name": "add", "description": "Adds.", "parameters": TOOL["parameters"]},
    }
    assert now["function"]["parameters"] == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        ("required", "required"),
        ({"type": "function", "name": "add"}, {"type": "function", "function": {"name": "add"}}),
    ],
)
def test_the_choice_of_a_tool(choice: Any, kept: Any) -> None:
    assert chat_request({"input": "a", "tool_choice": choice}, [])["tool_choice"] == kept


def test_settings_have_their_chat_names() -> None:
    schema = {"type": "object"}
    body = {
        "input": "a",
        "max_output_tokens": 9,
        "stream": True,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}},
        "include": ["message.output_text.logprobs"],
        "store": False,
        "reasoning": {"effort": "low"},
        "truncation": "disabled",
    }
    assert chat_request(body, []) == {
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 9,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        "logprobs": True,
    }


IMAGE = {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"input": []}, "input", "input is empty; expected at least one item"),
        ({"input": 3}, "input", "input is 3; expected a list"),
        ({"input": ["a"]}, "input[0]", "input[0] is 'a'; expected an object"),
        ({"input": [{"content": "a"}]}, "input[0].role", "is None; expected one of user"),
        ({"input": [{"type": "item_reference", "id": "i"}]}, "input[0].type", "'item_reference'"),
        ({"input": [{"type": ["message"]}]}, "input[0].type", "expected one of message"),
        ({"input": [{"role": "tool", "content": ""}]}, "input[0].role", "'tool'; expected one of"),
        ({"input": [IMAGE]}, "input[0].content[0].type", "'input_image'; expected a part that"),
        ({"input": [{**OUTPUT, "call_id": None}]}, "input[0].call_id", "None; expected a string"),
        ({"input": [{**CALL, "name": ""}]}, "input[0].name", "at least one character"),
        ({"input": [{**CALL, "arguments": {}}]}, "input[0].arguments", "{}; expected a string"),
        ({"input": [{**OUTPUT, "output": None}]}, "input[0].output", "None; expected a list"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'; exp"),
        ({"input": "a", "tools": [{"type": "mcp"}]}, "tools[0].type", "'mcp'; expected function"),
        ({"input": "a", "tools": 1}, "tools", "1; expected a list"),
        ({"input": "a", "tools": [{"type": "function"}]}, "tools[0].name", "expected a string"),
        ({"input": "a", "tool_choice": {"type": "web_search"}}, "tool_choice", "expected one of"),
        ({"input": "a", "background": True}, "background", "background is not served"),
        ({"input": "a", "conversation": "c"}, "conversation", "previous_response_id"),
        ({"input": "a", "prompt": {"id": "p"}}, "prompt", "stored prompts"),
        ({"input": "a", "top_logprobs": 3}, "top_logprobs", "is not served"),
        ({"input": "a", "truncation": "auto"}, "truncation", "expected disabled"),
        ({"input": "a", "text": {"format": {"type": "xml"}}}, "text.format.type", "'xml'"),
        ({"input": "a", "text": {"format": {"type": ["text"]}}}, "text.format.type", "['text']"),
        ({"input": "a", "include": "all"}, "include", "expected a list"),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens", "at least 1"),
        ({"input": "a", "stream": 1}, "stream", "expected true or false"),
        ({"input": "a", "model": 1}, "model", "expected a string"),
    ],
)
def test_what_is_not_served_is_refused_by_name(body: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)) as raised:
        chat_request(body, [])
    assert raised.value.param == param


def test_a_response_goes_on_from_one_that_was_kept() -> None:
    past, dialect = Past(), Responses()
    first = {"input": [USER], "instructions": "Old."}
    dialect.keep(chat_answer("5", id="chatcmpl-1"), first, past)
    second = {"input": "And?", "previous_response_id": "resp_1"}
    dialect.keep(chat_answer("6", id="chatcmpl-2"), second, past)
    asked = dialect.request(
        {"input": "More", "instructions": "New.", "previous_response_id": "resp_2"}, past
    )
    assert [(m["role"], m["content"]) for m in asked["messages"]] == [
        ("system", "New."),
        ("user", "Add 2 and 3."),
        ("assistant", "5"),
        ("user", "And?"),
        ("assistant", "6"),
        ("user", "More"),
    ]


@pytest.mark.parametrize("body", [{}, {"input": "a", "store": False}])
def test_a_response_that_was_not_kept_is_not_found(body: dict[str, Any]) -> None:
    past, dialect = Past(), Responses()
    if body:
        dialect.keep(chat_answer("5", id="chatcmpl-9"), body, past)
    with pytest.raises(RequestError, match="'resp_9'") as raised:
        dialect.request({"input": "a", "previous_response_id": "resp_9"}, past)
    assert raised.value.code == "previous_response_not_found"
