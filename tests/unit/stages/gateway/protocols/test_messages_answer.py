"""/v1/messages: answers and events are those of Anthropic's client, and come back as they went."""

import json
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import ErrorResponse, Message, MessageTokensCount, RawMessageStreamEvent
from hypothesis import given
from pydantic import TypeAdapter

from stages.gateway import errors
from stages.gateway.errors import RequestError
from stages.gateway.protocols.messages import Messages, MessageTokens
from stages.gateway.protocols.messages_request import prompt_request
from tests.unit.stages.gateway.protocols import chats
from tests.unit.stages.gateway.protocols.chats import call, chat_answer, turns

ADD = call("c1", "add", '{"a": 2}')
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def answer(chat: dict[str, Any]) -> dict[str, Any]:
    return Messages().answer(chat, {})


def events_of(chat: dict[str, Any]) -> list[dict[str, Any]]:
    return chats.events(Messages().events(chat, {}))


def folded(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What Anthropic's client makes of a stream."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in events:
        read = EVENT.validate_python(event)
        snapshot = accumulate_event(event=read, current_snapshot=snapshot, json_bufs=buffers)
    folded: dict[str, Any] = snapshot.to_dict()
    return folded


def test_an_answer_is_one_of_the_client() -> None:
    read = Message.model_validate(answer(chat_answer("I add.", [ADD], "Sum?")))
    assert [block.type for block in read.content] == ["thinking", "text", "tool_use"]
    assert (read.id, read.stop_reason, read.stop_sequence) == ("msg_7", "tool_use", None)
    used = read.usage
    assert (used.input_tokens, used.cache_read_input_tokens, used.output_tokens) == (4, 8, 5)


@pytest.mark.parametrize(
    ("reason", "matched", "said"),
    [
        ("stop", None, ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("length", None, ("max_tokens", None)),
    ],
)
def test_why_it_stopped(reason: str, matched: Any, said: tuple[str, str | None]) -> None:
    chat = chat_answer("a", finish_reason=reason, matched_stop=matched)
    for given_answer in (answer(chat), folded(events_of(chat))):
        read = Message.model_validate(given_answer)
        assert (read.stop_reason, read.stop_sequence) == said


def test_events_come_in_anthropics_order() -> None:
    kinds = [event["type"] for event in events_of(chat_answer("Sum", [ADD], "Hm"))]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    thoughts = [*block[:2], "content_block_delta", block[2]]  # and their signature
    assert kinds == ["message_start", *thoughts, *block, *block, "message_delta", "message_stop"]


@given(turns())
def test_events_add_up_to_the_answer_in_the_client(chat: dict[str, Any]) -> None:
    whole = Message.model_validate(answer(chat)).to_dict()
    assert folded(events_of(chat)) == whole


@given(turns())
def test_a_turn_comes_back_as_it_went(chat: dict[str, Any]) -> None:
    """So that the tokens of the turn are found again; of calls, the value of their arguments."""
    went = chat["choices"][0]["message"]
    client = Message.model_validate(answer(chat)).to_dict()
    user = {"role": "user", "content": "Go on"}
    turn = {"role": "assistant", "content": client["content"]}
    came = prompt_request({"messages": [turn, user]})["messages"][0]
    assert came["content"] == (went["content"] or "")
    assert came.get("reasoning_content", "") == went.get("reasoning_content", "")
    assert [parsed(c) for c in came.get("tool_calls", [])] == [
        parsed(c) for c in went.get("tool_calls", [])
    ]


def parsed(made: dict[str, Any]) -> tuple[str, str, Any]:
    return made["id"], made["function"]["name"], json.loads(made["function"]["arguments"])


@pytest.mark.parametrize("arguments", ['{"a": 2', "[1]", ""])
def test_arguments_that_are_no_object_come_back_to_the_letter(arguments: str) -> None:
    chat = chat_answer(None, [call("c1", "add", arguments)])
    for client in (answer(chat), folded(events_of(chat))):
        (block,) = client["content"]
        assert block["input"] == {"INVALID_JSON": arguments}
        turn = {"role": "assistant", "content": [block]}
        user = {"role": "user", "content": "Go on"}
        came = prompt_request({"messages": [turn, user]})["messages"][0]
        assert came["tool_calls"] == [call("c1", "add", arguments)]


def test_a_count_is_one_of_the_client() -> None:
    assert MessageTokensCount.model_validate(MessageTokens().answer(12)).input_tokens == 12


KINDS = {
    errors.RequestError: "invalid_request_error",
    errors.UnknownTokenError: "authentication_error",
    errors.ForeignSessionError: "permission_error",
    errors.TooManyError: "rate_limit_error",
    errors.UnavailableError: "api_error",
}


@pytest.mark.parametrize(("error", "kind"), KINDS.items())
def test_a_refusal_is_one_of_the_client(error: type[RequestError], kind: str) -> None:
    read = ErrorResponse.model_validate(Messages().error(error("no")))
    assert (read.error.type, read.error.message) == (kind, "no")


def test_too_large_a_body_has_a_kind_that_the_client_has_no_type_for() -> None:
    body = Messages().error(errors.TooLargeError("no"))
    assert body["error"]["type"] == "request_too_large"
