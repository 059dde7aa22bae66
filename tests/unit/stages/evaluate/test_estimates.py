"""pass@k against its definition, and intervals against what they promise."""

from __future__ import annotations

import itertools
import random
from math import isclose

import pytest

from pipeline.core.types import Estimate
from stages.evaluate.estimates import estimate, pass_at_k, student_quantile


@pytest.mark.parametrize("num", range(1, 7))
def test_pass_at_k_is_the_share_of_the_draws_that_hold_a_right_one(num: int) -> None:
    for right, k in itertools.product(range(num + 1), range(1, num + 1)):
        samples = [place < right for place in range(num)]
        draws = [any(draw) for draw in itertools.combinations(samples, k)]
        assert isclose(pass_at_k(num, right, k), sum(draws) / len(draws))


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (29, 2.0452), (999, 1.9623)],
)
def test_students_quantile_is_that_of_the_tables(degrees: int, quantile: float) -> None:
    assert student_quantile(degrees) == pytest.approx(quantile, rel=3e-3)


def test_one_prompt_has_a_mean_and_no_interval_and_none_has_nothing() -> None:
    assert estimate([[1.0, 0.0]]) == Estimate(mean=0.5, low=None, high=None)
    assert estimate([]) is None and estimate([[]]) is None


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_what_never_varied_is_not_certain(value: float) -> None:
    found = estimate([[value] * 8] * 10)
    # as of ten tosses, not of eighty: a prompt's samples may be all alike
    assert found is not None and found.low is not None and found.high is not None
    assert found.high - found.low == pytest.approx(0.2775, abs=1e-4)
    assert value in (found.low, found.high)


def test_rewards_beyond_0_and_1_have_a_students_interval() -> None:
    found = estimate([[-1.0], [1.0], [-1.0], [1.0]])
    assert found is not None and found.mean == 0.0
    assert found.high == pytest.approx(3.1824 * (4 / 3 / 4) ** 0.5, rel=3e-3)
    assert found.low == -found.high  # type: ignore[operator]


def test_samples_of_a_prompt_are_worth_less_than_as_many_prompts() -> None:
    alike = estimate([[1.0] * 4] * 10 + [[0.0] * 4] * 10)
    apart = estimate([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]] * 7)
    single = estimate([[1.0]] * 10 + [[0.0]] * 10)
    assert alike is not None and apart is not None and single is not None
    assert alike == single  # four times the same tells nothing new
    assert apart.high - apart.low < 0.6 * (alike.high - alike.low)  # type: ignore[operator]


@pytest.mark.parametrize(("num_prompts", "k"), [(10, 1), (30, 1), (30, 4), (200, 8)])
def test_intervals_cover_the_truth_as_often_as_they_say(num_prompts: int, k: int) -> None:
    """Prompts' pass rates are Beta(0.5, 1.5): most are hard. The truth is the mean over all of them
    of 1 - (1 - p)^k, which has a closed form: 1 - B(0.5, 1.5 + k) / B(0.5, 1.5)."""
    draw, num = random.Random(f"{num_prompts} {k}"), 8
    truth, covered, repeats = 1.0, 0, 500
    for i in range(k):
        truth *= (1.5 + i) / (2.0 + i)
    truth = 1 - truth
    for _ in range(repeats):
        rates = [draw.betavariate(0.5, 1.5) for _ in range(num_prompts)]
        rights = [sum(draw.random() < rate for _ in range(num)) for rate in rates]
        values = [[pass_at_k(num, right, k)] for right in rights]
        found = estimate(values)
        assert found is not None and found.low is not None and found.high is not None
        assert 0 <= found.low <= found.mean <= found.high <= 1
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / repeats <= 0.99
