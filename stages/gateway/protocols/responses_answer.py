"""/v1/responses, the answer: one object that holds the model's turn as output items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.gateway.protocols.turns import number_of, tokens_used

# What a response says of its request, and what it says where the request did not.
ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}


def response_id(chat: Mapping[str, Any]) -> str:
    return f"resp_{number_of(chat)}"


def response(chat: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to the request `body`."""
    choice = chat["choices"][0]
    is_cut = choice["finish_reason"] == "length"
    status = "incomplete" if is_cut else "completed"
    echoed = {
        name: default if body.get(name) is None else body[name] for name, default in ECHOED.items()
    }
    return {
        "id": response_id(chat),
        "object": "response",
        "created_at": chat["created"],
        "model": chat["model"],
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        **echoed,
        "output": _items(number_of(chat), choice, status),
        "usage": _usage(chat),
    }


def _items(number: str, choice: Mapping[str, Any], status: str) -> list[dict[str, Any]]:
    """Reasoning, text and calls of a choice, as far as it has them; a turn that has nothing at all
    is an empty text, so that it comes back with the next request."""
    message = choice["message"]
    calls, text = message.get("tool_calls") or [], message.get("content") or ""
    items: list[dict[str, Any]] = []
    if reasoning := message.get("reasoning_content"):
        items.append(
            {
                "id": f"rs_{number}",
                "type": "reasoning",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": reasoning}],
                "status": "completed",
            }
        )
    if text or not calls:
        items.append(
            {
                "id": f"msg_{number}",
                "type": "message",
                "role": "assistant",
                "status": status,
                "content": [_text_part(text, choice["logprobs"])],
            }
        )
    return [*items, *(_call(f"fc_{number}_{at}", call) for at, call in enumerate(calls))]


def _text_part(text: str, logprobs: Mapping[str, Any] | None) -> dict[str, Any]:
    tokens = [] if logprobs is None else logprobs["content"]
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": tokens}


def _call(item_id: str, call: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "function_call",
        "call_id": call["id"],
        "name": call["function"]["name"],
        "arguments": call["function"]["arguments"],
        "status": "completed",
    }


def _usage(chat: Mapping[str, Any]) -> dict[str, Any]:
    prompt, cached, answered = tokens_used(chat)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": answered,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + answered,
    }
