"""Every estimator against its formula written as a loop over python floats, and what must not
matter: order, neighbours, fan-out."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import AlgorithmConfig
from pipeline.core.types import Group, TrainSample
from stages.advantage import compute_advantages
from stages.batch import make_batch
from tests.unit.stages.advantage.test_advantage import make_group, make_sample

WITHIN = ("grpo", "gspo", "cispo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline")
ALL = (*WITHIN, "reinforce_plus_plus")
REWARDS = st.floats(-100, 100, allow_subnormal=False).map(lambda r: round(r, 3))
ROLLOUT = st.lists(REWARDS, min_size=1, max_size=3)  # the rewards of its samples
GROUPS = st.lists(st.lists(ROLLOUT, min_size=1, max_size=6), min_size=1, max_size=4)


def reference(estimator: str, rollouts: Sequence[Sequence[float]], with_std: bool) -> list[float]:
    """One group's rewards -> one number a sample: the definitions over rollouts, whose reward is
    the mean of their samples'."""
    k = len(rollouts)
    means = [math.fsum(r) / len(r) for r in rollouts]
    baseline = math.fsum(means) / k
    flat = [r for rollout in rollouts for r in rollout]
    if max(flat) == min(flat):
        return [0.0] * len(flat) if estimator != "reinforce_plus_plus" else flat
    out: list[float] = []
    for i, rollout in enumerate(rollouts):
        for r in rollout:
            if estimator == "reinforce_plus_plus":
                out.append(r)
            elif estimator == "rloo":
                others = [m for j, m in enumerate(means) if j != i]
                out.append(r - math.fsum(others) / len(others) if others else 0.0)
            elif estimator in ("grpo", "gspo", "cispo") and with_std and k > 1:
                variance = math.fsum((x - baseline) ** 2 / len(s) for s in rollouts for x in s) / (
                    k - 1
                )
                out.append((r - baseline) / (math.sqrt(variance) + 1e-6))
            else:
                out.append(r - baseline)
    return out


def group_of(rollouts: Sequence[Sequence[float]], index: int = 0) -> Group:
    """Samples of a rollout carry its index; lengths differ, and the last token but one has no
    loss."""
    samples = []
    for i, rollout in enumerate(rollouts):
        for j, reward in enumerate(rollout):
            n = 2 + (i + 2 * j + index) % 4
            mask = [1] * n
            mask[-2] = 0
            samples.append(
                make_sample(reward, n=n, index=100 * index + i, group_index=index, loss_mask=mask)
            )
    return make_group(*samples, index=index)


def config(estimator: str, **flags: Any) -> AlgorithmConfig:
    return AlgorithmConfig(advantage_estimator=estimator, **flags)  # type: ignore[arg-type]


def last_tokens(rows: Sequence[TrainSample]) -> list[float]:
    """The last token of every response is trained."""
    return [float(r.advantages[-1]) for r in rows]


@pytest.mark.parametrize("estimator", ALL)
@settings(max_examples=60)
@given(groups=GROUPS, with_std=st.booleans())
def test_each_estimator_against_its_definition(
    estimator: str, groups: list[list[list[float]]], with_std: bool
) -> None:
    rows = compute_advantages(
        [group_of(g, i) for i, g in enumerate(groups)],
        config(estimator, grpo_std_normalization=with_std),
        policy_version=3,
    )
    want = [a for g in groups for a in reference(estimator, g, with_std)]
    np.testing.assert_allclose(last_tokens(rows), want, rtol=1e-4, atol=1e-3)
    for row in rows:
        # gamma 1: the same on every trained token
        assert len(set(row.advantages[row.loss_mask == 1].tolist())) == 1


@settings(max_examples=60)
@given(groups=GROUPS, estimator=st.sampled_from(ALL), seed=st.integers(0, 99))
def test_order_of_groups_and_of_samples_does_not_matter(
    groups: list[list[list[float]]], estimator: str, seed: int
) -> None:
    made = [group_of(g, i) for i, g in enumerate(groups)]
    shuffled = [
        dataclasses.replace(g, samples=tuple(random.Random(seed).sample(g.samples, len(g.samples))))
        for g in made
    ]
    random.Random(seed).shuffle(shuffled)

    def by_sample(rows: list[TrainSample]) -> list[Any]:
        return sorted(
            (
                r.group_index,
                r.index,
                r.response_length,
                r.reward,
                r.weight,
                tuple(np.round(r.advantages, 3).tolist()),
            )
            for r in rows
        )

    flags = config(estimator, normalize_advantages=seed % 2 == 0)
    one, other = (
        by_sample(compute_advantages(g, flags, policy_version=3)) for g in (made, shuffled)
    )
    assert [x[:5] for x in one] == [x[:5] for x in other]
    np.testing.assert_allclose(
        [a for x in one for a in x[5]], [a for x in other for a in x[5]], atol=5e-3
    )


@settings(max_examples=60)
@given(groups=GROUPS, estimator=st.sampled_from(ALL))
def test_a_group_does_not_look_at_its_neighbours(
    groups: list[list[list[float]]], estimator: str
) -> None:
    made = [group_of(g, i) for i, g in enumerate(groups)]
    together = compute_advantages(made, config(estimator), policy_version=3)
    alone = [
        row for g in made for row in compute_advantages([g], config(estimator), policy_version=3)
    ]
    assert [r.advantages.tolist() for r in together] == [r.advantages.tolist() for r in alone]


@settings(max_examples=60)
@given(
    rewards=st.lists(REWARDS, min_size=1, max_size=6),
    copies=st.lists(st.integers(1, 4), min_size=6, max_size=6),
    estimator=st.sampled_from(WITHIN),
)
def test_a_rollout_cut_into_samples_is_one_rollout(
    rewards: list[float], copies: list[int], estimator: str
) -> None:
    """Fan-out with equal rewards changes no advantage, and each rollout keeps the weight of one."""
    whole = compute_advantages(
        [group_of([[r] for r in rewards])], config(estimator), policy_version=3
    )
    cut = compute_advantages(
        [group_of([[r] * c for r, c in zip(rewards, copies, strict=False)])],
        config(estimator),
        policy_version=3,
    )
    for row in whole:
        parts = [r for r in cut if r.index == row.index]
        np.testing.assert_allclose(
            last_tokens(parts), last_tokens([row]) * len(parts), rtol=1e-4, atol=1e-4
        )
        assert sum(r.weight for r in parts) == pytest.approx(row.weight) and row.weight == 1.0


@pytest.mark.parametrize("estimator", WITHIN)
@pytest.mark.parametrize("std", [True, False])
def test_equal_rewards_and_single_samples_have_advantage_exactly_zero(
    estimator: str, std: bool
) -> None:
    flags = config(estimator, grpo_std_normalization=std)
    for group in (group_of([[0.1]] * 3), group_of([[0.3]]), group_of([[0.1, 0.1], [0.1]])):
        assert all(
            (r.advantages == 0).all() for r in compute_advantages([group], flags, policy_version=3)
        )


@settings(max_examples=60)
@given(groups=GROUPS, gamma=st.floats(0.5, 1.0), seed=st.integers(0, 99))
def test_reinforce_plus_plus_discounts_over_trained_tokens(
    groups: list[list[list[float]]], gamma: float, seed: int
) -> None:
    rng = random.Random(seed)
    made = [group_of(g, i) for i, g in enumerate(groups)]
    for sample in (s for g in made for s in g.samples):
        sample.loss_mask = [1, *(rng.randint(0, 1) for _ in range(sample.response_length - 1))]
    rows = compute_advantages(made, config("reinforce_plus_plus", gamma=gamma), policy_version=3)
    for row, sample in zip(rows, (s for g in made for s in g.samples), strict=True):
        want, running = [0.0] * sample.response_length, None
        for t in reversed(range(sample.response_length)):
            if sample.loss_mask[t]:
                running = sample.reward if running is None else gamma * running
                want[t] = running
        np.testing.assert_allclose(row.advantages, want, rtol=1e-5, atol=1e-6)


@settings(max_examples=60)
@given(groups=GROUPS, estimator=st.sampled_from(ALL))
def test_whitening_is_over_all_trained_tokens_of_the_rollout(
    groups: list[list[list[float]]], estimator: str
) -> None:
    made = [group_of(g, i) for i, g in enumerate(groups)]
    made[0].samples[0].remove_sample = True
    plain = compute_advantages(made, config(estimator), policy_version=3)
    white = compute_advantages(made, config(estimator, normalize_advantages=True), policy_version=3)
    tokens = [float(a) for r in plain for a, m in zip(r.advantages, r.loss_mask, strict=True) if m]
    if not tokens:
        return
    mean = math.fsum(tokens) / len(tokens)
    variance = math.fsum((a - mean) ** 2 for a in tokens) / max(len(tokens) - 1, 1)
    for before, after in zip(plain, white, strict=True):
        for a, w, m in zip(
            before.advantages.tolist(), after.advantages.tolist(), before.loss_mask, strict=True
        ):
            want = (
                (a - mean) / math.sqrt(variance + 1e-8) if m and max(tokens) != min(tokens) else 0.0
            )
            assert w == pytest.approx(want, rel=2e-3, abs=2e-3)


def test_disabled_normalisation_leaves_raw_rewards() -> None:
    rows = compute_advantages(
        [group_of([[4.0], [0.0], [2.0]])],
        config("grpo", rewards_normalization=False),
        policy_version=3,
    )
    assert last_tokens(rows) == [4.0, 0.0, 2.0]


def test_dr_grpo_divides_token_sums_by_a_constant() -> None:
    groups = [group_of([[4.0], [0.0]])]
    rows = compute_advantages(groups, config("dr_grpo"), policy_version=3, max_response_len=50)
    assert [r.norm_length for r in rows] == [50, 50]
    for flags in (
        config("dr_grpo", calculate_per_token_loss=True),
        config("grpo", grpo_std_normalization=False),
    ):
        other = compute_advantages(groups, flags, policy_version=3, max_response_len=50)
        assert [r.norm_length for r in other] == [None, None] and last_tokens(other) == last_tokens(
            rows
        )


@settings(max_examples=60)
@given(groups=GROUPS, steps=st.integers(1, 2))
def test_denominators_count_rollouts(groups: list[list[list[float]]], steps: int) -> None:
    made = [group_of(g, i) for i, g in enumerate(groups)]
    made[-1].samples[-1].remove_sample = True
    rows = compute_advantages(made, policy_version=3)
    if sum(r.loss_mask.any() for r in rows) < steps:
        return
    batch = make_batch(
        rows,
        rollout_id=0,
        policy_version=3,
        num_dp_ranks=1,
        num_steps_per_rollout=steps,
        max_tokens=1000,
    )
    assert sum(s.num_samples for s in batch.steps) == pytest.approx(sum(len(g) for g in groups))
    assert sum(s.num_loss_tokens for s in batch.steps) == sum(int(r.loss_mask.sum()) for r in rows)


@pytest.mark.parametrize("estimator", ["reinforce_plus_plus", "reinforce_plus_plus_baseline"])
def test_with_a_kl_in_the_returns_the_learner_whitens_them(estimator: str) -> None:
    made = [group_of([[1.0], [0.0], [0.25]])]
    plain, later = (
        compute_advantages(made, config(estimator, **flags), policy_version=3)
        for flags in (
            {"normalize_advantages": False},
            {"normalize_advantages": True, "kl_coef": 0.1},
        )
    )
    assert [r.advantages.tolist() for r in later] == [r.advantages.tolist() for r in plain]
