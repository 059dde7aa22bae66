"""/v1/messages, Anthropic's protocol, the answer: a message of content blocks, whole or as events.

Streamed: message_start; of each block content_block_start, deltas, content_block_stop; then
message_delta, message_stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from stages.gateway.errors import RequestError
from stages.gateway.protocols.messages_request import UNPARSED
from stages.gateway.protocols.turns import arguments_object, number_of, tokens_used

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}

Block = dict[str, Any]
Event = dict[str, Any]


def message(chat: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request."""
    choice = chat["choices"][0]
    prompt, cached, answered = tokens_used(chat)
    return {
        "id": f"msg_{number_of(chat)}",
        "type": "message",
        "role": "assistant",
        "model": chat["model"],
        "content": _blocks(choice["message"]),
        **_stop(choice),
        "usage": {
            "input_tokens": prompt - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": answered,
        },
    }


def message_events(whole: Mapping[str, Any]) -> Iterator[Event]:
    """A message as the events of its stream."""
    nothing: dict[str, Any] = {"stop_reason": None, "stop_sequence": None, "content": []}
    begun = {**whole, **nothing, "usage": {**whole["usage"], "output_tokens": 0}}
    yield {"type": "message_start", "message": begun}
    for index, block in enumerate(whole["content"]):
        empty, deltas = _parts(block)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {name: whole[name] for name in ("stop_reason", "stop_sequence", "stop_details")}
    yield {"type": "message_delta", "delta": stop, "usage": whole["usage"]}
    yield {"type": "message_stop"}


def anthropic_error(error: RequestError) -> dict[str, Any]:
    """The body of a refusal."""
    rest = "api_error" if error.status >= 500 else "invalid_request_error"
    said = {"type": KINDS.get(error.status, rest), "message": str(error)}
    return {"type": "error", "error": said}


def _blocks(turn: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    if reasoning := turn.get("reasoning_content"):  # unsigned: nobody here checks it
        blocks.append({"type": "thinking", "thinking": reasoning, "signature": ""})
    if text := turn.get("content"):
        blocks.append({"type": "text", "text": text, "citations": None})
    return [*blocks, *(_tool_use(call) for call in turn.get("tool_calls") or ())]


def _tool_use(call: Mapping[str, Any]) -> Block:
    function = call["function"]
    given = arguments_object(function["arguments"])
    if given is None:
        given = {UNPARSED: function["arguments"]}
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": given}


def _stop(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Why it stopped; `matched_stop` is the stop text that ended it, if one did."""
    matched = choice.get("matched_stop")
    reason = STOP_REASONS[choice["finish_reason"]]
    if matched is not None and reason == "end_turn":
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": matched, "stop_details": None}


def _parts(block: Block) -> tuple[Block, list[dict[str, Any]]]:
    """A block as it begins, and what is added to it."""
    if block["type"] == "text":
        return {**block, "text": ""}, [{"type": "text_delta", "text": block["text"]}]
    if block["type"] == "thinking":
        thinking = {"type": "thinking_delta", "thinking": block["thinking"]}
        signature = {"type": "signature_delta", "signature": block["signature"]}
        return {**block, "thinking": ""}, [thinking, signature]
    given = orjson.dumps(block["input"]).decode()
    return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": given}]
