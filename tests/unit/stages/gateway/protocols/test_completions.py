"""/v1/completions: the prompt as it is, answers and chunks as OpenAI's client knows them."""

import re
from typing import Any

import pytest
from openai.types import Completion

from stages.gateway.errors import RequestError
from stages.gateway.past import Past
from stages.gateway.protocols.completions import Completions
from tests.unit.stages.gateway.protocols.chats import USAGE, chat_answer, events

TOKEN = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}


def request(body: dict[str, Any]) -> dict[str, Any]:
    return Completions().request(body, Past())


@pytest.mark.parametrize(
    ("given", "kept"), [("Once", "Once"), ([5, 6], [5, 6]), (["Once"], "Once"), ([[5, 6]], [5, 6])]
)
def test_a_prompt_is_text_or_tokens_and_a_batch_of_one_is_that_one(given: Any, kept: Any) -> None:
    assert request({"prompt": given})["prompt"] == kept


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (None, "prompt is None; expected a text, or a list of token ids"),
        ("", "at least one character"),
        ([], "expected a text, or a list of token ids"),
        (["a", "b"], "several prompts"),
        ([[1], [2]], "several prompts"),
        ([1, True], "prompt[1] is True; expected a token id"),
        ([1, -1], "prompt[1] is -1; expected a token id"),
        ([1, 2.5], "prompt[1] is 2.5; expected a token id"),
    ],
)
def test_another_prompt_is_refused(prompt: Any, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)) as raised:
        request({"prompt": prompt})
    assert str(raised.value.param).startswith("prompt")


def test_its_settings_are_those_of_chat() -> None:
    body = {"prompt": "a", "max_tokens": 3, "stop": ["\n"], "n": 2, "user": "u", "logprobs": 0}
    assert request(body) == {
        "prompt": "a",
        "max_tokens": 3,
        "stop": ["\n"],
        "n": 2,
        "logprobs": True,
    }
    assert request({"prompt": "a"}) == {"prompt": "a", "max_tokens": 16}
    assert "best_of" not in request({"prompt": "a", "best_of": 1})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("echo", True, "echo is not served"),
        ("suffix", "z", "suffix is not served"),
        ("best_of", 2, "best_of is not served"),
        ("stream", "yes", "stream is 'yes'; expected true or false"),
        ("stream_options", [1], "stream_options is [1]; expected an object"),
        ("logprobs", 1, "logprobs is 1; expected 0"),
        ("logprobs", False, "logprobs is False; expected 0"),
    ],
)
def test_what_is_not_served_is_refused_by_name(name: str, value: Any, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)) as raised:
        request({"prompt": "a", name: value})
    assert raised.value.param == name


def test_an_answer_is_one_of_the_client() -> None:
    tokens = [TOKEN, {**TOKEN, "token": "!"}]
    given = Completions().answer(chat_answer("Hi!", logprobs={"content": tokens}), {})
    read = Completion.model_validate(given)
    assert (read.id, read.choices[0].text) == ("cmpl-7", "Hi!")
    assert read.choices[0].finish_reason == "stop"
    assert read.usage is not None and read.usage.total_tokens == 17
    assert given["choices"][0]["logprobs"] == {
        "tokens": ["Hi", "!"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": None,
        "text_offset": [0, 2],
    }


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_stream_is_of_the_clients_completions(include_usage: bool) -> None:
    chat = chat_answer("Hi")
    chat["choices"] += [{**chat["choices"][0], "index": 1}]
    frames = list(Completions().events(chat, {"stream_options": {"include_usage": include_usage}}))
    assert frames[-1] == b"data: [DONE]\n\n"
    read = [Completion.model_validate(event) for event in events(frames)]
    assert [(c.index, c.text) for r in read for c in r.choices] == [(0, "Hi"), (1, "Hi")]
    last = read[-1].usage
    assert (last.model_dump(exclude_unset=True) if last else None) == (
        USAGE if include_usage else None
    )
