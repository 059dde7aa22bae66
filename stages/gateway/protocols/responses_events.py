"""/v1/responses, streamed: the events of a response, in the order in which OpenAI sends them.

created, in_progress; of each item: output_item.added, content_part.added, deltas, done,
content_part.done, output_item.done (of a call: its arguments in place of a part); completed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Event = dict[str, Any]
PARTS = {"output_text": "response.output_text", "reasoning_text": "response.reasoning_text"}
ARGUMENTS = "response.function_call_arguments"


def response_events(response: Mapping[str, Any]) -> Iterator[Event]:
    """Numbered, from 0."""
    for number, event in enumerate(_events(response)):
        yield {**event, "sequence_number": number}


def _events(response: Mapping[str, Any]) -> Iterator[Event]:
    more: dict[str, Any] = {"output": [], "usage": None, "incomplete_details": None}
    begun = {**response, "status": "in_progress", **more}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(response["output"]):
        yield from _item(index, item)
    yield {"type": f"response.{response['status']}", "response": response}


def _item(index: int, item: Mapping[str, Any]) -> Iterator[Event]:
    is_call = item["type"] == "function_call"
    empty: dict[str, Any] = {"arguments": ""} if is_call else {"content": []}
    added = {**item, "status": "in_progress", **empty}
    yield {"type": "response.output_item.added", "output_index": index, "item": added}
    place = {"item_id": item["id"], "output_index": index}
    yield from _arguments(place, item) if is_call else _parts(place, item)
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _arguments(place: Mapping[str, Any], call: Mapping[str, Any]) -> Iterator[Event]:
    arguments = call["arguments"]
    yield {"type": f"{ARGUMENTS}.delta", **place, "delta": arguments}
    yield {"type": f"{ARGUMENTS}.done", **place, "name": call["name"], "arguments": arguments}


def _parts(place: Mapping[str, Any], item: Mapping[str, Any]) -> Iterator[Event]:
    for at, part in enumerate(item["content"]):
        where = {**place, "content_index": at}
        kind, text = PARTS[part["type"]], part["text"]
        tokens = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
        begun = {**part, "text": "", **{name: [] for name in tokens}}
        yield {"type": "response.content_part.added", **where, "part": begun}
        if text:
            yield {"type": f"{kind}.delta", **where, "delta": text, **tokens}
        yield {"type": f"{kind}.done", **where, "text": text, **tokens}
        yield {"type": "response.content_part.done", **where, "part": part}
