"""What the router says of a payload that it cannot serve."""

from __future__ import annotations

from typing import Any

import pytest

from stages.generate.router.payload import PayloadError, read_payload

PNG = "data:image/png;base64,AAAA"


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ([1], "the payload is [1]; expected a JSON object"),
        ({}, "neither (keys: none) of text and input_ids given; expected exactly one"),
        ({"prompt": "a"}, "prompt: 'a' is not served here; expected one of text, input_ids"),
        ({"text": "a", "input_ids": [1]}, "both of text and input_ids given"),
        ({"text": 3}, "text is 3; expected a string or a list of strings"),
        ({"input_ids": []}, "input_ids is []; expected a list of token ids"),
        ({"input_ids": [1, "b"]}, "input_ids is [1, 'b']; expected a list of token ids"),
        ({"input_ids": [True]}, "input_ids is [True]; expected a list of token ids"),
        ({"text": "a", "sampling_params": 3}, "sampling_params is 3; expected an object"),
        ({"text": ["a"], "sampling_params": [{}, {}]}, "sampling_params has 2 entries for 1"),
        ({"text": "a", "sampling_params": {"n": 0}}, "sampling_params.n is 0; expected"),
        (
            {"text": "a", "sampling_params": {"max_new_tokens": 0}},
            "sampling_params.max_new_tokens is 0; expected a number of at least 1",
        ),
        ({"text": "a", "stream": True}, "stream: True is not served here; expected one of text"),
        ({"text": "a", "top_logprobs_num": 5}, "top_logprobs_num: 5 is not served here"),
        ({"text": "a", "logprob_start_len": 0}, "logprob_start_len: 0 is not served here"),
        ({"text": ["a", "b"], "image_data": PNG}, "expected one entry for each prompt"),
        ({"text": "a", "routing_key": 3}, "routing_key is 3; expected a string"),
        ({"text": "a", "rid": 3}, "rid is 3; expected a string"),
    ],
)
def test_a_payload_that_cannot_be_served_says_what_was_given_and_expected(
    payload: Any, said: str
) -> None:
    with pytest.raises(PayloadError) as caught:
        read_payload(payload)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "more",
    [{"stream": False}, {"logprob_start_len": -1}, {"logprob_start_len": None}, {"priority": 3}],
)
def test_what_asks_for_nothing_is_taken(more: dict[str, Any]) -> None:
    assert read_payload({"text": "a", **more}).requests[0].prompt == "a"


@pytest.mark.parametrize(
    ("payload", "images"),
    [
        ({"text": "a", "image_data": PNG}, [[PNG]]),
        ({"text": "a", "image_data": [PNG, PNG]}, [[PNG, PNG]]),
        ({"text": ["a", "b", "c"], "image_data": [PNG, [PNG, PNG], None]}, [[PNG], [PNG] * 2, []]),
    ],
)
def test_images_belong_to_their_prompt(payload: Any, images: Any) -> None:
    assert [list(r.images) for r in read_payload(payload).requests] == images
