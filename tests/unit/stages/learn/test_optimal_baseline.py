"""VCPO's baseline against loops over python floats: what it is, that no other leaves less variance,
and that it does not matter where its trajectories lie."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import AlgorithmConfig, Config
from pipeline.core.types import TrainSample
from stages.learn.log_prob_pass import LogProbPass, Prepared
from stages.learn.optimal_baseline import TrajectoryPart, optimal_baselines
from stages.learn.settings import LearnerSettings
from stages.learn.step_objective import StepObjective
from stages.learn.trained_tokens import FlatTrainedTokens, trained_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A sample, and the log-probs of its trained tokens at consumption."""

    sample: TrainSample
    old: list[float]


def make(seed: int, num_groups: int = 3, spread: float = 0.4) -> list[Made]:
    """Groups of three trajectories, the last of each cut in two samples."""
    rng = np.random.default_rng(seed)
    out = []
    for group in range(num_groups):
        for place, trajectory in enumerate((0, 1, 2, 2)):
            n = int(rng.integers(1, 6))
            mask = np.ones(n + 1, np.uint8)
            mask[rng.integers(n + 1)] = 0
            old = rng.uniform(-3, -0.05, n + 1).astype(np.float32)
            sample = TrainSample(
                index=4 * group + place,
                group_index=7 + group,
                tokens=np.arange(n + 3),
                response_length=n + 1,
                loss_mask=mask,
                rollout_log_probs=(old + spread * rng.normal(size=n + 1)).astype(np.float32),
                advantages=np.full(n + 1, float(rng.integers(0, 3)), np.float32),
                reward=0.0,
                staleness=1,
                trajectory=3 * group + trajectory,
                weight=0.5 if trajectory == 2 else 1.0,
            )
            out.append(Made(sample=sample, old=old[mask.astype(bool)].tolist()))
    return out


def trained(values: np.ndarray, made: Made) -> list[float]:
    return [float(v) for v, m in zip(values, made.sample.loss_mask, strict=True) if m]


def loop(every: Sequence[Made], per_token: bool) -> dict[int, float]:
    """b* of each group, as the formula reads."""
    out = {}
    for group in {m.sample.group_index for m in every}:
        above = below = 0.0
        own = [m for m in every if m.sample.group_index == group]
        for trajectory in {m.sample.trajectory for m in own}:
            parts = [m for m in own if m.sample.trajectory == trajectory]
            log_w = energy = reward = 0.0
            for m in parts:
                rollout = trained(m.sample.rollout_log_probs, m)
                c = 1.0 if per_token else m.sample.weight / len(m.old)
                log_w += sum(o - r for o, r in zip(m.old, rollout, strict=True))
                energy += sum((c * (1 - math.exp(o))) ** 2 for o in m.old)
                reward += float(m.sample.advantages[0]) / len(parts)
            above += math.exp(log_w) ** 2 * energy * reward
            below += math.exp(log_w) ** 2 * energy
        out[group] = above / below
    return out


class Rank:
    """Passes of one rank, whose log-probs are known; what others gather is given."""

    sees, data_group = True, None

    def __init__(self, known: dict[int, list[float]], others: list[Any]) -> None:
        self._known, self._others = known, others
        self.gathered: list[Any] = []

    def with_old(self, micro_batches: Sequence[Prepared]) -> list[Prepared]:
        return [
            p._replace(
                old=torch.tensor(
                    [x for i in p.batch.sample_indices.tolist() for x in self._known[i]]
                )
            )
            for p in micro_batches
        ]

    def log_probs_now(self, micro_batches: Sequence[Prepared]) -> list[Any]:
        raise AssertionError("not asked for")

    with_reference = with_old

    def gather(self, value: Any) -> list[Any]:
        self.gathered.append(value)
        return [value, *self._others]


def prepare(
    steps: Sequence[Sequence[Sequence[Made]]], every: Sequence[Made], per_token: bool, others: Any
) -> tuple[dict[int, list[float]], list[Any]]:
    """(Sample index -> its advantages, what this rank told the others)."""
    algorithm = AlgorithmConfig(advantage_estimator="opob", calculate_per_token_loss=per_token)
    goal = StepObjective(LearnerSettings(config=Config(algorithm=algorithm)))
    rank = Rank({m.sample.index: m.old for m in every}, others)
    batches = [
        [
            FlatTrainedTokens(**trained_fields([m.sample for m in mb], torch.device("cpu")))
            for mb in step
        ]
        for step in steps
    ]
    out = {}
    for step in LogProbPass(rank, goal, None).prepare(batches):
        for p in step:
            parts = p.batch.advantages.split(p.batch.token_counts.tolist())
            out.update(
                zip(p.batch.sample_indices.tolist(), (x.tolist() for x in parts), strict=True)
            )
    return out, rank.gathered


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_rewards_less_the_baseline_wherever_a_group_lies(seed: int, per_token: bool) -> None:
    """On one rank, or on two that gather, in any micro-batches."""
    every = make(seed)
    baselines = loop(every, per_token)
    want = {
        m.sample.index: [float(m.sample.advantages[0]) - baselines[m.sample.group_index]]
        * len(m.old)
        for m in every
    }
    mixed = random.Random(seed).sample(every, len(every))
    here, there = mixed[:5], mixed[5:]
    _, told = prepare([[there]], every, per_token, [])
    alone, _ = prepare([[mixed[:2], mixed[2:7], mixed[7:]]], every, per_token, [])
    shared, _ = prepare([[here[:2], here[2:]]], every, per_token, told)
    for index, advantages in want.items():
        assert alone[index] == pytest.approx(advantages, abs=1e-4)
        if index in shared:
            assert shared[index] == pytest.approx(advantages, abs=1e-4)
    assert len(shared) == len(here)


PARTS = st.lists(
    st.tuples(st.floats(-3, 3), st.floats(-2, 2), st.floats(0.01, 5)), min_size=1, max_size=6
)


def parts_of(found: list[tuple[float, float, float]]) -> list[TrajectoryPart]:
    return [
        TrajectoryPart(0, (0, i), reward, log_weight, energy)
        for i, (reward, log_weight, energy) in enumerate(found)
    ]


@settings(max_examples=200)
@given(found=PARTS, off=st.floats(-2, 2))
def test_no_other_baseline_leaves_a_smaller_second_moment(
    found: list[tuple[float, float, float]], off: float
) -> None:
    """The mean is the same whatever the baseline, so that the second moment tells the variance."""
    best = optimal_baselines(parts_of(found))[0]

    def moment(b: float) -> float:
        return sum(math.exp(2 * x) * g * (r - b) ** 2 for r, x, g in found)

    assert moment(best) <= moment(best + off) + 1e-9 * (1 + moment(best))


def test_on_policy_and_of_equal_sizes_it_is_the_mean() -> None:
    found = [(1.0, 0.0, 2.0), (0.0, 0.0, 2.0), (0.0, 0.0, 2.0), (5.0, 0.0, 2.0)]
    assert optimal_baselines(parts_of(found))[0] == pytest.approx(1.5)


def test_weights_that_would_overflow_or_vanish() -> None:
    for shift in (-900.0, 900.0):
        found = [(1.0, shift, 1.0), (0.0, shift + math.log(3), 1.0)]
        assert optimal_baselines(parts_of(found))[0] == pytest.approx(0.1)
    certain = [(1.0, 0.0, 0.0), (0.0, 0.0, 0.0)]  # no gradient, so nothing to choose
    assert optimal_baselines(parts_of(certain))[0] == pytest.approx(0.5)


@settings(max_examples=100)
@given(logits=st.lists(st.floats(-6, 6), min_size=2, max_size=7), seed=st.integers(0, 99))
def test_the_size_is_the_norm_at_the_logits_to_a_factor_of_two(
    logits: list[float], seed: int
) -> None:
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(x, -1)[seed % len(logits)]
    norm = torch.autograd.grad(log_p, x)[0].square().sum().item()
    size = (1 - math.exp(log_p.item())) ** 2
    assert size * (1 - 1e-9) <= norm <= 2 * size * (1 + 1e-9)
