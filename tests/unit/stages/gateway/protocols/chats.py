"""Answers in the gateway's own form, as dialects are given them."""

import json
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

HEAD: dict[str, Any] = {"id": "chatcmpl-7", "created": 1_700_000_000, "model": "tiny"}
USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 8},
}


def call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def chat_answer(
    text: str | None = None,
    calls: Iterable[dict[str, Any]] = (),
    reasoning: str = "",
    finish_reason: str | None = None,
    id: str = HEAD["id"],
    **choice: Any,
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls := list(calls):
        message["tool_calls"] = calls
    reason = finish_reason or ("tool_calls" if calls else "stop")
    return {
        **HEAD,
        "id": id,
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": message, "finish_reason": reason, "logprobs": None, **choice}
        ],
        "usage": USAGE,
    }


def events(frames: Iterable[bytes]) -> list[dict[str, Any]]:
    """The data of server-sent events, the last of which may be [DONE]."""
    out = []
    for frame in frames:
        *name, data, nothing, end = frame.decode().split("\n")
        assert nothing == end == ""
        if data != "data: [DONE]":
            out.append(json.loads(data.removeprefix("data: ")))
            assert name in ([], [f"event: {out[-1].get('type')}"])
    return out


json_objects = st.dictionaries(
    st.text(max_size=5), st.one_of(st.integers(-9, 9), st.text(max_size=9), st.none()), max_size=3
)


@st.composite
def turns(draw: st.DrawFn) -> dict[str, Any]:
    """A turn of the model: reasoning, text and calls, each perhaps missing."""
    made = [
        call(f"call_{at}", f"tool{at}", json.dumps(arguments))
        for at, arguments in enumerate(draw(st.lists(json_objects, max_size=3)))
    ]
    text, reasoning = draw(st.text(max_size=20)), draw(st.text(max_size=20))
    return chat_answer(text or None, made, reasoning)
