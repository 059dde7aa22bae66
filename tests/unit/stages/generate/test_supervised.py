"""Given answers in the place of sampled ones: which tokens carry loss, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from examples.sft import generate as own_answers
from pipeline.core.supervision import Supervision
from pipeline.core.types import Sample, Status, VersionSpan
from stages.engine.mock import MockTokenizer
from stages.generate.check import check_sample
from stages.generate.supervised import SupervisedGenerate

CHAT = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "bc"},
    {"role": "tool", "content": "d"},
    {"role": "assistant", "content": "e"},
]


class Engines:
    """Would generate."""

    async def __call__(
        self, samples: Sequence[Sample], *, evaluation: bool = False, sampling: object = None
    ) -> list[Sample]:
        assert evaluation
        return [Sample(response="sampled")]


def stage(**how: Any) -> SupervisedGenerate:
    supervision = Supervision(tokenizer=MockTokenizer(), **how)
    return SupervisedGenerate(supervision, Engines(), lambda: 3)


def shown(sample: Sample) -> str:
    """[[trained]] characters."""
    assert sample.loss_mask is not None
    text, inside = "", False
    mask = [0] * sample.prompt_length + list(sample.loss_mask)
    for token, trained in zip(sample.tokens, mask, strict=True):
        text += ("[[" if trained else "]]") if bool(trained) != inside else ""
        inside = bool(trained)
        text += MockTokenizer().decode([token], skip_special_tokens=False)
    return text + ("]]" if inside else "")


@pytest.mark.parametrize(
    ("prompt", "label", "wanted"),
    [
        ("ab", "cd", "ab[[cd<eos>]]"),
        ("ab", 7, "ab[[7<eos>]]"),
        ("ab", ["first", "second"], "ab[[first<eos>]]"),
        (CHAT[:1], "cd", "user: a\nassistant: [[cd<eos>]]"),
        (CHAT, None, "user: a\nassistant: [[bc\n]]tool: d\nassistant: [[e\n]]"),
        (CHAT[:1], CHAT[1:], "user: a\nassistant: [[bc\n]]tool: d\nassistant: [[e\n]]"),
    ],
)
async def test_what_is_trained_of_a_row(prompt: Any, label: Any, wanted: str) -> None:
    given = Sample(prompt=prompt, label=label)
    (got,) = await stage()([given])
    assert shown(got) == wanted
    assert got.loss_mask is not None and got.loss_mask[0] == 1
    assert (got.status, got.reward) == (Status.COMPLETED, 0.0)
    assert got.weight_versions == [VersionSpan(3, 0, got.response_length)]
    check_sample(got, fallback_version=None)
    assert given.tokens == []  # a group may be made again from the same prompts


@pytest.mark.parametrize(
    ("prompt", "label", "says"),
    [
        ("ab", None, "text without a label.*--label-key.*--input-key"),
        ("ab", [], "the label is"),
        ("ab", CHAT[1:], "the prompt is text"),
        (CHAT[:1], None, "no message is of role assistant"),
        ([{"content": "a"}, *CHAT], None, "message 0 is"),
        ([*CHAT, {**CHAT[1], "step_loss_mask": "no"}], None, "message 4 has step_loss_mask 'no'"),
    ],
)
async def test_what_has_no_answer_fails_with_the_reason(prompt: Any, label: Any, says: str) -> None:
    (got,) = await stage()([Sample(prompt=prompt, label=label)])
    assert got.status is Status.FAILED
    with pytest.raises(Exception, match=says):
        raise ValueError(got.error)


async def test_a_row_that_is_too_long_fails() -> None:
    (got,) = await stage(max_tokens=9)([Sample(prompt=CHAT)])
    assert got.error is not None and "--rollout-max-context-len is 9" in got.error
    (got,) = await stage(max_tokens=5)([Sample(prompt="ab", label="cd")])
    assert got.status is Status.COMPLETED


async def test_evaluations_are_generated() -> None:
    (got,) = await stage()([Sample(prompt="ab")], evaluation=True)
    assert got.response == "sampled"


async def test_the_example_trains_on_answers_of_its_own() -> None:
    args: Any = type("Args", (), {"tokenizer": MockTokenizer(), "loss_mask_type": "qwen"})
    got = await own_answers(args, Sample(prompt="1+1=", label="2"), {})
    assert shown(got) == "1+1=[[The answer is 2.<eos>]]"
    check_sample(got, fallback_version=0)
