"""The effective sample size of trajectories, against a loop in float64, however they are cut into
samples and dealt out to micro-batches and ranks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import AlgorithmConfig, Config
from stages.batch import make_batch
from stages.learn.losses import TokenLogProbs
from stages.learn.outcome import NUM_POLICY_SUMS
from stages.learn.settings import LearnerSettings
from stages.learn.step_objective import StepObjective
from stages.learn.trained_tokens import FlatTrainedTokens, trained_fields
from stages.learn.trajectories import log_weight_sums, trajectory_ess_fraction
from tests.unit.stages.learn.test_fan_out import Policies, Trajectory, make, rows_of


class Ahead:
    def __init__(self, batch: FlatTrainedTokens, old: torch.Tensor) -> None:
        self.batch, self.old, self.ref = batch, old, None


def loop(trajectories: list[Trajectory], log_p: list[float], low: float, high: float) -> float:
    weights = []
    for t in trajectories:
        x = sum(log_p[i] - r for i, m, r in zip(t.ids, t.mask, t.rollout, strict=True) if m)
        weights.append(min(max(math.exp(x), low), high))
    return sum(weights) ** 2 / len(weights) / sum(w * w for w in weights)


def measured(
    trajectories: list[Trajectory],
    cuts: list[list[int]],
    policies: Policies,
    ranks: int,
    max_tokens: int,
    flags: dict[str, Any],
) -> tuple[float, dict[str, float]]:
    """(learning rate's factor, metrics) of one step."""
    goal = StepObjective(
        LearnerSettings(config=Config(algorithm=AlgorithmConfig(ess_lr_scaling=True, **flags)))
    )
    batch = make_batch(
        rows_of(trajectories, cuts, None),
        rollout_id=0,
        policy_version=0,
        num_dp_ranks=ranks,
        max_tokens=max_tokens,
    )
    (step,) = batch.steps
    sums, maxima = [], []
    for mb in (mb for rank in step.per_rank for mb in rank):
        p = FlatTrainedTokens(**trained_fields(mb, torch.device("cpu")))
        now = TokenLogProbs(policies.now[p.targets], policies.now[p.targets])
        ahead = Ahead(p, policies.old[p.targets])
        found = goal.outcome(torch.zeros(0), now, ahead, 1.0, None, step.num_trajectories)
        sums.append(found.sums)
        maxima.append(found.maxima)
    total = torch.stack(sums).sum(0)
    assert len(total) == NUM_POLICY_SUMS + step.num_trajectories
    return goal.lr_scale(total), goal.metrics(total, torch.stack(maxima).amax(0))


@pytest.mark.parametrize(
    ("flags", "low", "high", "policy"),
    [
        ({"use_tis": True}, 0.0, math.inf, "old"),
        ({"off_policy_correction": "seq-tis"}, 0.0, 2.0, "old"),
        (
            {"use_tis": True, "tis_level": "sequence", "tis_clip_low": 0.5, "tis_clip": 3.0},
            0.5,
            3.0,
            "old",
        ),
        ({"use_rollout_logprobs": True}, 0.0, math.inf, "now"),
        ({"off_policy_correction": "seq-mis"}, 0.0, math.inf, "old"),
    ],
)
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=2, max_size=8),
    cuts=st.lists(st.lists(st.integers(1, 29), max_size=3), min_size=8, max_size=8),
    seed=st.integers(0, 99),
    ranks=st.integers(1, 3),
    max_tokens=st.integers(10, 100),
)
def test_the_learning_rate_follows_the_ess_of_trajectories(
    flags: dict[str, Any],
    low: float,
    high: float,
    policy: str,
    lengths: list[int],
    cuts: list[list[int]],
    seed: int,
    ranks: int,
    max_tokens: int,
) -> None:
    trajectories, policies = make(lengths, seed)
    got, metrics = measured(trajectories, cuts[: len(lengths)], policies, ranks, max_tokens, flags)
    want = loop(trajectories, getattr(policies, policy).tolist(), low, high)
    assert got == pytest.approx(math.sqrt(want), rel=1e-5)
    assert metrics["trajectory_ess_fraction"] == pytest.approx(want, rel=1e-5)


def test_it_is_not_the_ess_of_tokens() -> None:
    """Of ragged lengths: a long trajectory is one, not as many as it has tokens."""
    trajectories, policies = make([40, 1, 1, 1], 0)
    trajectories = [dataclasses.replace(t, mask=[1] * len(t.ids)) for t in trajectories]
    flags = {"off_policy_correction": "seq-tis"}
    got, metrics = measured(trajectories, [[]] * 4, policies, 1, 1000, flags)
    assert abs(got**2 - metrics["ess_fraction"]) > 0.05


def test_weights_beyond_floats_have_an_ess() -> None:
    assert trajectory_ess_fraction(torch.tensor([-2000.0] * 4)) == 1.0
    assert trajectory_ess_fraction(torch.tensor([2000.0, -2000.0])) == 0.5
    assert trajectory_ess_fraction(torch.zeros(0)) == 1.0
    parts = log_weight_sums(
        torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 1]), torch.tensor([2, 2]), 3
    )
    assert parts.tolist() == [0.0, 0.0, 7.0]


def test_a_sample_that_only_fills_a_rank_is_part_of_no_trajectory() -> None:
    counts, trajectories = torch.tensor([2, 0]), torch.tensor([1, -1])
    parts = log_weight_sums(torch.tensor([1.0, 2.0]), counts, trajectories, 2)
    assert parts.tolist() == [0.0, 3.0]
