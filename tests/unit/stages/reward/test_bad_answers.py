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


@pytest.mark.parametrize(
    ("label", "response", "right"),
    [
        (r"\$18.90", r"\boxed{18.90}", True),
        ("$18.90", r"It is \$18.90.", True),
        (r"\$5", r"\boxed{\$5}", True),
        ("$5", "so he pays \\$5", True),
        (r"\$1,000", r"\boxed{1000}", True),
        (r"\$5", r"\boxed{\$6}", False),
        ("$18.90", r"\boxed{18.09}", False),
        ("$5$", r"\boxed{5}", True),
    ],
)
def test_dollars_are_dollars(label: str, response: str, right: bool) -> None:
    assert scorers.math(response, label, {}) == float(right)


@pytest.mark.parametrize("label", [["7", "8"], {"ground_truth": "8"}, {"ground_truth": [6, 8]}])
@pytest.mark.parametrize("scorer", ["math", "exact_match"])
def test_any_answer_of_a_label_is_right(scorer: str, label: object) -> None:
    assert scorers.SCORERS[scorer]("8", label, {}) == 1.0
    assert scorers.SCORERS[scorer]("9", label, {}) == 0.0


@pytest.mark.parametrize("label", [True, float("nan"), {"answer": 8}, [], [None], {"a": 1}])
@pytest.mark.parametrize("scorer", ["math", "exact_match"])
def test_a_label_that_is_no_answer_is_no_wrong_answer(scorer: str, label: object) -> None:
    with pytest.raises(ValueError, match="the label is"):
        scorers.SCORERS[scorer]("True", label, {})
