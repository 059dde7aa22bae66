"""Whatever a client sends is a chat or a refusal with words, never a fault of the server's."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.gateway.chat import read_chat
from stages.gateway.dialects import COUNTS, DIALECTS
from stages.gateway.errors import RequestError
from stages.gateway.past import Past

FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}}
TEXT = {"type": "text", "text": "a"}
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "user", "content": [TEXT]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": "a"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
    },
    "/v1/completions": {"prompt": ["a"], "stop": ["b"], "n": 1, "logprobs": 0, "best_of": 1},
    "/v1/responses": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}]},
            {"type": "message", "role": "assistant", "content": "a"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "a"},
        ],
        "instructions": "a",
        "tools": [{"type": "function", **FUNCTION}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
        "include": ["message.output_text.logprobs"],
        "stream": True,
        "store": False,
    },
    "/v1/messages": {
        "max_tokens": 9,
        "system": [TEXT],
        "messages": [
            {"role": "user", "content": [TEXT]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "a", "signature": ""},
                    TEXT,
                    {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t", "content": [TEXT]}],
            },
        ],
        "stop_sequences": ["b"],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "f"},
        "output_config": {"format": {"type": "json_schema", "schema": {}}},
    },
}
VALID["/v1/messages/count_tokens"] = VALID["/v1/messages"]

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "role", "text", "name"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(what holds it, its key) of everything within."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    inner = [value[key] for key in keys]
    below = [place for v in inner if isinstance(v, dict | list) for place in places(v)]
    return [*((value, key) for key in keys), *below]


def read(path: str, body: dict[str, Any]) -> None:
    for dialect in DIALECTS:
        if dialect.path == path:
            read_chat(dialect.request(body, Past()))
            assert isinstance(dialect.streams(body), bool)
    for counts in COUNTS:
        if counts.path == path:
            read_chat(counts.request(body))


def test_each_path_is_here() -> None:
    assert VALID.keys() == {d.path for d in (*DIALECTS, *COUNTS)}


@pytest.mark.parametrize("path", VALID)
def test_what_is_valid_is_read(path: str) -> None:
    read(path, copy.deepcopy(VALID[path]))


@pytest.mark.parametrize("path", VALID)
@given(data=st.data())
def test_what_is_not_is_refused(path: str, data: st.DataObject) -> None:
    body = copy.deepcopy(VALID[path])
    for _ in range(data.draw(st.integers(1, 3))):
        if found := places(body):
            holder, key = found[data.draw(st.integers(0, len(found) - 1))]
            holder[key] = data.draw(anything)
    try:
        read(path, body)
    except RequestError as error:
        assert str(error)
