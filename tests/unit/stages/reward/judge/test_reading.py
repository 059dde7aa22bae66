"""What a judge is asked, and the score in what it says."""

from __future__ import annotations

import re

import pytest

from pipeline.core.types import Sample
from stages.reward.judge.question import DEFAULT, question
from stages.reward.judge.reading import read_score


@pytest.mark.parametrize(
    ("reply", "reward"),
    [
        ('{"score": 0.5}', {"score": 0.5}),
        ('Fine.\n```json\n{"score": "7", "why": "short"}\n```', {"score": 7.0, "why": "short"}),
        ('{"score": 1} no, {"score": 0}', {"score": 0.0}),
        ('{"score": 1} and {"other": 2}', {"score": 1.0}),
        ('{"score": 1, "parts": {"score": 0}}', {"score": 1.0, "parts": {"score": 0}}),
        ('<think>{"score": 1}</think>{"score": 0.25}', {"score": 0.25}),
        ('{ not json {"score": true}', {"score": 1.0}),
    ],
)
def test_the_last_json_object_with_a_score_is_the_reward(reply: str, reward: object) -> None:
    assert read_score(reply, None, "score") == reward


@pytest.mark.parametrize(
    "reply",
    [
        *("", "good", '{"score": "high"}', '{"score": null}', '{"score": NaN}', '{"score": 1e999}'),
        '{"points": 1}',
        '<think>{"score": 1}</think>I cannot say',
        '{"score": ' * 5000,
    ],
)
def test_what_says_no_score_is_none(reply: str) -> None:
    with pytest.raises(ValueError, match="no JSON object with a number at 'score'"):
        read_score(reply, None, "score")


def test_a_pattern_reads_its_last_group_that_is_a_number() -> None:
    pattern = re.compile(r"Score: (\S+)")
    assert read_score("Score: 3\nScore: 4.5\nScore: high", pattern, "score") == 4.5
    with pytest.raises(ValueError, match="finds no number"):
        read_score("Score: high", pattern, "score")


def test_the_template_is_filled_once() -> None:
    sample = Sample(
        prompt=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "1+2?"}]},
        ],
        response="<think>hm</think>{label} is {x}",
        label=["3", "three"],
        metadata={"rubric": "exact", "parts": {"a": 1}},
    )
    template = "{prompt}|{response}|{answer}|{label}|{metadata.rubric}|{metadata.parts}|{x}"
    assert question(template, sample) == (
        "system: Be brief.\n\nuser: \n1+2?|<think>hm</think>{label} is {x}|{label} is {x}"
        '|["3", "three"]|exact|{"a": 1}|{x}'
    )
    assert question("[{answer}{metadata.none}]", Sample(response="<think>no end")) == "[]"


def test_the_default_question_has_everything_and_shows_the_form_of_the_verdict() -> None:
    asked = question(DEFAULT, Sample(prompt="P", response="R", label="L"))
    assert all(f"\n{part}\n" in asked for part in "PRL")
    assert '{"score": NUMBER}' in asked
