"""--kl-coef with REINFORCE++: what a token owes, and that it is whitened with the return, against
loops over python floats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import AlgorithmConfig, Config
from stages.learn.log_prob_pass import LogProbPass, Prepared
from stages.learn.objective import penalised_returns, shaped_advantages
from stages.learn.settings import LearnerSettings
from stages.learn.step_objective import StepObjective
from tests.unit.tokens import FakeTokens, make_samples, pack

ESTIMATORS = ("reinforce_plus_plus", "reinforce_plus_plus_baseline")


def loop(batch: FakeTokens, coef: float, gamma: float, estimator: str) -> list[float]:
    """Per token r_i - coef * KL_i, r at the last; its discounted sum from t on (the baseline's: the
    token's own)."""
    out, start = [], 0
    old, ref, given = batch.old.tolist(), batch.ref.tolist(), batch.advantages.tolist()
    for count in batch.token_counts.tolist():
        for t in range(start, start + count):
            last = t + 1 if estimator.endswith("baseline") else start + count
            owed = sum(gamma ** (i - t) * (old[i] - ref[i]) for i in range(t, last))
            out.append(given[t] - coef * owed)
        start += count
    return out


@pytest.mark.parametrize("estimator", ESTIMATORS)
@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    coef=st.floats(0.01, 1),
    gamma=st.sampled_from([1.0, 0.97, 0.5]),
)
def test_a_token_pays_for_what_follows_it(
    estimator: Any, lengths: list[int], seed: int, coef: float, gamma: float
) -> None:
    config = AlgorithmConfig(
        advantage_estimator=estimator, kl_coef=coef, gamma=gamma, kl_loss_type="k1"
    )
    batch = pack(make_samples(lengths, seed, spread=0.5), torch.float64)
    got = penalised_returns(batch, batch.old, batch.ref, config)
    assert got.tolist() == pytest.approx(loop(batch, coef, gamma, estimator), abs=1e-5)
    assert shaped_advantages(batch, batch.old, batch.ref, config) is batch.advantages  # once


class Passes:
    """Log-probs that are known already."""

    sees, data_group = True, None

    def log_probs_now(self, micro_batches: Sequence[Prepared]) -> list[Any]:
        return [p.batch.old for p in micro_batches]

    def with_old(self, micro_batches: Sequence[Prepared]) -> list[Prepared]:
        return [p._replace(old=p.batch.old) for p in micro_batches]

    def with_reference(self, micro_batches: Sequence[Prepared]) -> list[Prepared]:
        return [p._replace(ref=p.batch.ref) for p in micro_batches]

    def gather(self, value: Any) -> list[Any]:
        return [value]


class NoReference:
    @contextmanager
    def in_place(self) -> Iterator[None]:
        yield


def prepared(batches: Sequence[Sequence[FakeTokens]], **flags: Any) -> list[list[Prepared]]:
    algorithm = AlgorithmConfig(**flags)
    goal = StepObjective(LearnerSettings(config=Config(algorithm=algorithm)))
    return LogProbPass(Passes(), goal, NoReference()).prepare(batches)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_whole_rollout_is_whitened_behind_the_kl(estimator: str) -> None:
    """Over all micro-batches of all optimizer steps."""
    parts = [
        pack(make_samples(lengths, seed, spread=0.7), torch.float64)
        for seed, lengths in enumerate([[4, 1], [6], [2, 3, 5]])
    ]
    flags = {"advantage_estimator": estimator, "kl_coef": 0.3, "normalize_advantages": True}
    got = prepared([parts[:2], parts[2:]], **flags)
    raw = [loop(part, 0.3, 1.0, estimator) for part in parts]
    flat = [x for part in raw for x in part]
    mean = sum(flat) / len(flat)
    std = math.sqrt(sum((x - mean) ** 2 for x in flat) / (len(flat) - 1) + 1e-8)
    found = [p.batch.advantages.tolist() for step in got for p in step]
    for part, want in zip(found, raw, strict=True):
        assert part == pytest.approx([(x - mean) / std for x in want], abs=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        {"advantage_estimator": "grpo", "kl_coef": 0.3},
        {"advantage_estimator": "reinforce_plus_plus", "normalize_advantages": True},
        {"advantage_estimator": "ppo", "kl_coef": 0.3, "normalize_advantages": True},
    ],
)
def test_other_advantages_are_left_alone(flags: dict[str, Any]) -> None:
    batch = pack(make_samples([3, 2], 0, spread=0.5))
    ((only,),) = prepared([[batch]], **flags)
    assert only.batch.advantages is batch.advantages
