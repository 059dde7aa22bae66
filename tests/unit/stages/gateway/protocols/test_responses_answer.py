"""/v1/responses: answers and events are those of OpenAI's client, and come back as they went."""

from typing import Any

from hypothesis import given
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from stages.gateway.protocols.responses import Responses
from stages.gateway.protocols.responses_request import chat_request, input_messages
from tests.unit.stages.gateway.protocols import chats
from tests.unit.stages.gateway.protocols.chats import call, chat_answer, turns

BODY: dict[str, Any] = {
    "input": "Add.",
    "instructions": "Be brief.",
    "max_output_tokens": 9,
    "tools": [{"type": "function", "name": "add", "parameters": {}, "strict": False}],
    "tool_choice": "auto",
}
ADD = call("c1", "add", '{"a": 2}')
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def answer(chat: dict[str, Any]) -> dict[str, Any]:
    return Responses().answer(chat, BODY)


def events_of(chat: dict[str, Any]) -> list[dict[str, Any]]:
    return chats.events(Responses().events(chat, BODY))


def test_an_answer_is_one_of_the_client() -> None:
    read = Response.model_validate(answer(chat_answer("I add.", [ADD], "Sum?")))
    assert (read.id, read.status, read.output_text) == ("resp_7", "completed", "I add.")
    assert [item.type for item in read.output] == ["reasoning", "message", "function_call"]
    assert len({item.id for item in read.output}) == 3
    assert read.usage is not None
    used = read.usage
    assert (used.input_tokens, used.output_tokens, used.total_tokens) == (12, 5, 17)
    assert used.input_tokens_details.cached_tokens == 8
    assert (read.instructions, read.max_output_tokens) == ("Be brief.", 9)
    assert [tool.type for tool in read.tools] == ["function"]


def test_a_cut_answer_is_incomplete() -> None:
    chat = chat_answer("I a", finish_reason="length")
    read = Response.model_validate(answer(chat))
    assert read.status == "incomplete" and read.incomplete_details is not None
    assert read.incomplete_details.reason == "max_output_tokens"
    assert events_of(chat)[-1]["type"] == "response.incomplete"


def test_the_sampled_tokens_log_probs_come_with_the_text() -> None:
    tokens = [{"token": "Zü", "logprob": -0.5, "bytes": [0x5A, 0xC3, 0xBC], "top_logprobs": []}]
    read = Response.model_validate(answer(chat_answer("Zü", logprobs={"content": tokens})))
    (part,) = read.output[0].content  # type: ignore[union-attr, misc]
    assert part.logprobs[0].bytes == [0x5A, 0xC3, 0xBC]  # type: ignore[union-attr, index]


def test_events_come_in_openais_order() -> None:
    kinds = [
        event["type"].removeprefix("response.")
        for event in events_of(chat_answer("Sum", [ADD], "Hm"))
    ]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]


@given(turns())
def test_events_are_the_clients_and_add_up_to_the_answer(chat: dict[str, Any]) -> None:
    events = events_of(chat)
    for event in events:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    whole = answer(chat)
    assert events[-1] == {**events[-1], "response": whole}
    done = [e for e in events if e["type"] == "response.output_item.done"]
    assert [e["item"] for e in done] == whole["output"]
    assert [e["output_index"] for e in done] == list(range(len(done)))
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == (chat["choices"][0]["message"]["content"] or "")


@given(turns())
def test_a_turn_comes_back_as_it_went(chat: dict[str, Any]) -> None:
    """So that the tokens of the turn are found again."""
    went = chat["choices"][0]["message"]
    client = Response.model_validate(answer(chat))
    items = [item.model_dump(exclude_unset=True) for item in client.output]
    (came,) = input_messages({"input": items})
    assert came["content"] == (went["content"] or "")
    assert came.get("tool_calls", []) == went.get("tool_calls", [])
    assert came.get("reasoning_content", "") == went.get("reasoning_content", "")
    assert chat_request({"input": items}, [])["messages"] == [came]
