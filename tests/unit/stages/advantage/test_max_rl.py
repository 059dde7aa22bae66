"""MaxRL's advantages: over all draws of a group from an enumerable policy, their gradient is the
truncated maximum likelihood's; and what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import AlgorithmConfig
from pipeline.core.errors import DataError
from stages.advantage import compute_advantages
from stages.advantage.rewards import max_rl_rewards
from tests.unit.stages.advantage.test_estimators import group_of


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_its_expected_gradient_is_the_truncated_maximum_likelihoods(p: float, size: int) -> None:
    """One parameter, success with probability p = sigmoid(x). The objective of order N is -sum over
    k <= N of (1 - p)^k / k, whose gradient in p is (1 - (1 - p)^N) / p. Times dp/dx = p (1 - p) it
    is the expectation of the mean over a group of N of A d log pi / dx, less that of the mean score
    over groups with a success (0 over all groups)."""
    expected = 0.0
    for outcome in itertools.product((0.0, 1.0), repeat=size):
        chance = math.prod(p if r else 1 - p for r in outcome)
        advantages = max_rl_rewards(np.array(outcome), np.arange(size))
        score = [(1 - p) if r else -p for r in outcome]  # d log pi / dx
        expected += chance * sum(a * s for a, s in zip(advantages, score, strict=True)) / size
    with_success = 1 - (1 - p) ** size
    likelihood = with_success / p * p * (1 - p)
    baseline = sum(
        math.comb(size, k) * p**k * (1 - p) ** (size - k) * (k / size - p)
        for k in range(1, size + 1)
    )
    assert expected == pytest.approx(likelihood - baseline, abs=1e-12)


# of rewards next to the smallest numbers there are no mean has a digit that is right
REWARDS = st.just(0.0) | st.floats(1e-6, 9)


@given(st.lists(st.lists(REWARDS, min_size=1, max_size=3), min_size=1, max_size=6))
def test_against_the_definition_over_rollouts(rollouts: list[list[float]]) -> None:
    means = [math.fsum(r) / len(r) for r in rollouts]
    mean = math.fsum(means) / len(means)
    rows = compute_advantages(
        [group_of(rollouts)], AlgorithmConfig(advantage_estimator="max_rl"), policy_version=3
    )
    flat = [r for rollout in rollouts for r in rollout]
    equal = max(flat) == min(flat)
    want = [0.0 if equal or mean <= 0 else (r - mean) / mean for r in flat]
    got = [float(row.advantages[0]) for row in rows]
    assert got == pytest.approx(want, rel=1e-4, abs=1e-4)


def test_a_negative_reward_is_refused() -> None:
    with pytest.raises(DataError, match=r"max_rl: a reward is -1; .*dr_grpo"):
        max_rl_rewards(np.array([1.0, -1.0]), np.arange(2))
