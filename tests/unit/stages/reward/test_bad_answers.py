"""Whose fault is it? A wrong answer scores 0; a missing label or a broken scorer fails the
sample."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from configs.schema import DataConfig, RewardConfig
from pipeline.core.types import Sample, Status
from stages.reward import build_reward, scorers
from stages.source import build_source


@pytest.mark.parametrize("response", ["seven", "9" * 6000, "((((", "1 x"])
def test_an_answer_the_tasks_scorer_cannot_read_is_wrong_not_failed(response: str) -> None:
    sample = build_source("reasoning_gym:prime_factorization?size=3", DataConfig()).get_samples(1)[
        0
    ][0]
    assert scorers.reasoning_gym(sample.label, sample.label, sample.metadata) == 1.0
    assert scorers.reasoning_gym(response, sample.label, sample.metadata) < 0.1


def test_a_scorer_that_cannot_read_the_right_answer_either_fails() -> None:
    sample = build_source("reasoning_gym:prime_factorization?size=3", DataConfig()).get_samples(1)[
        0
    ][0]
    sample.metadata["reasoning_gym"]["entry"]["answer"] = "broken"
    with pytest.raises(ValueError, match="broken"):
        scorers.reasoning_gym("seven", sample.label, sample.metadata)


@pytest.mark.parametrize(
    ("scorer", "label"), [("exact_match", None), ("math", None), ("math", ""), ("math", "###")]
)
def test_without_a_usable_label_nothing_is_scored(scorer: str, label: str | None) -> None:
    with pytest.raises(ValueError, match="label"):
        scorers.SCORERS[scorer]("None", label, {})


@pytest.mark.parametrize(
    "label", [5, "0.5", "\\frac{1}{2}", "$x^2$", "(1, 2)", "2\\pi", "1 \\frac{1}{2}", "x^2+1"]
)
def test_a_label_equals_itself(label: object) -> None:
    assert scorers.math(f"so \\boxed{{{str(label).strip('$')}}}", label, {}) == 1.0


async def test_a_missing_label_is_named_on_the_sample() -> None:
    sample = Sample(index=3, response="None", status=Status.COMPLETED)
    reward = build_reward(RewardConfig(rm_type="exact_match"), SimpleNamespace())
    await reward([sample])
    await reward.close()
    assert (
        sample.status is Status.FAILED
        and sample.reward is None
        and "--label-key" in (sample.error or "")
    )


@pytest.mark.parametrize(
    ("label", "response"),
    [
        ("2\\pi", "2"),
        ("(1, 2)", "2"),
        ("1 \\frac{1}{2}", "\\frac{1}{2}"),
        ("so it is\n#### 72", "4"),
    ],
)
def test_a_part_of_the_label_is_not_the_label(label: str, response: str) -> None:
    assert scorers.math(f"\\boxed{{{response}}}", label, {}) == 0.0


def test_a_worked_solution_as_label() -> None:
    assert scorers.math("\\boxed{72}", "so it is\n#### 72", {}) == 1.0
    assert scorers.math("\\boxed{72}", "and so $x = \\boxed{72}$", {}) == 1.0
