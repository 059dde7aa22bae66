"""Fan-out: it must not matter where a trajectory is cut into samples. Against loops in float64 over
whole trajectories, through the very stages that a run has."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.corrections import correction_of
from configs.schema import AlgorithmConfig
from pipeline.core.types import TrainSample
from stages.advantage.shares import share_trajectories
from stages.batch import make_batch
from stages.learn.corrections import batch_evidence, batch_statistics
from stages.learn.diagnostics import ess_of
from stages.learn.losses import TokenLogProbs
from stages.learn.objective import policy_objective
from stages.learn.outcome import SUMS, ObjectiveExtras
from stages.learn.trained_tokens import FlatTrainedTokens, trained_fields

CONFIGS: dict[str, dict[str, Any]] = {
    "tis": {"use_tis": True},
    "dr_grpo": {"advantage_estimator": "dr_grpo"},
    "icepop": {"off_policy_correction": "icepop"},
    "normalised": {"off_policy_correction": "tis", "correction_batch_normalize": True},
    "m2po": {"off_policy_correction": "m2po"},
    "kl": {"use_kl_loss": True, "kl_loss_coef": 0.3, "kl_loss_type": "k2", "entropy_coef": 0.1},
}
NORM = 50  # dr_grpo's constant


@dataclass(frozen=True)
class Trajectory:
    """Its tokens are told by their ids, unique over the rollout; `mask`: the trained ones."""

    ids: list[int]
    mask: list[int]
    advantage: float
    rollout: list[float]


@dataclass(frozen=True)
class Policies:
    """[ids] log-probs by token id."""

    now: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor


def make(lengths: list[int], seed: int) -> tuple[list[Trajectory], Policies]:
    rng = np.random.default_rng(seed)
    out, start = [], 0
    total = sum(lengths)
    now = -2 + 0.5 * rng.standard_normal(total)
    rollout = (now + 0.4 * rng.standard_normal(total)).astype(np.float32)
    for n in lengths:
        mask = (rng.random(n) < 0.7).astype(int)
        mask[rng.integers(n)] = 1
        ids = list(range(start, start + n))
        advantage = float(np.float32(rng.standard_normal()))
        out.append(Trajectory(ids, mask.tolist(), advantage, rollout[ids].tolist()))
        start += n
    noise = 0.2 * rng.standard_normal((2, total))
    return out, Policies(*(torch.tensor(x) for x in (now, now + noise[0], now + noise[1])))


def rows_of(
    trajectories: list[Trajectory], cuts: list[list[int]], norm_length: int | None
) -> list[TrainSample]:
    """A row for every part of every trajectory."""
    rows = []
    for number, (t, places) in enumerate(zip(trajectories, cuts, strict=True)):
        bounds = sorted({0, len(t.ids), *(p for p in places if p < len(t.ids))})
        for a, b in itertools.pairwise(bounds):
            rows.append(
                TrainSample(
                    index=number,
                    group_index=0,
                    tokens=np.array([0, *t.ids[a:b]]),
                    response_length=b - a,
                    loss_mask=np.array(t.mask[a:b], np.uint8),
                    rollout_log_probs=np.array(t.rollout[a:b], np.float32),
                    advantages=np.full(b - a, t.advantage, np.float32),
                    reward=0.0,
                    staleness=0,
                    trajectory=number,
                    norm_length=norm_length,
                )
            )
    return share_trajectories(rows)


def gradients(
    rows: list[TrainSample],
    policies: Policies,
    config: AlgorithmConfig,
    ranks: int,
    steps: int,
    max_tokens: int,
) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """(gradient at every token's log-prob, at its entropy, ESS of every step)."""
    now = policies.now.clone().requires_grad_()
    entropy = torch.zeros_like(now).requires_grad_()
    batch = make_batch(
        rows,
        rollout_id=0,
        policy_version=0,
        num_dp_ranks=ranks,
        num_steps_per_rollout=steps,
        max_tokens=max_tokens,
    )
    correction, ess = correction_of(config), []
    for step in batch.steps:
        if step.is_empty:
            continue
        parts = [
            FlatTrainedTokens(**trained_fields(mb, torch.device("cpu")))
            for rank in step.per_rank
            for mb in rank
        ]
        evidence = [
            batch_evidence(
                correction,
                (policies.now if correction.ratio == "bypass" else policies.old)[p.targets],
                p.rollout_log_probs,
                p.advantages,
                p.token_counts,
                p.shares,
            )
            for p in parts
        ]
        per_token = config.calculate_per_token_loss
        denominator = float(step.num_loss_tokens if per_token else step.num_samples)
        statistics, sums = batch_statistics(correction, evidence), []
        for p in parts:
            ref = policies.ref[p.targets] if config.use_kl_loss else None
            found = policy_objective(
                TokenLogProbs(now[p.targets], entropy[p.targets]),
                policies.old[p.targets],
                p,
                config,
                denominator,
                ObjectiveExtras(ref=ref, statistics=statistics),
            )
            found.loss.backward()
            sums.append(found.sums)
        ess.append(ess_of(torch.stack(sums).sum(0)[len(SUMS) :]))
    assert now.grad is not None
    return now.grad, torch.zeros_like(now) if entropy.grad is None else entropy.grad, ess


def loop(
    step: list[Trajectory], policies: Policies, name: str, *, per_token: bool
) -> dict[int, float]:
    """token id -> gradient at its log-prob, of one step of whole trajectories."""
    trained = [[i for i, m in zip(t.ids, t.mask, strict=True) if m] for t in step]
    every = [i for ids in trained for i in ids]
    of = {i: t for t in step for i in t.ids}
    rollout = {i: x for t in step for i, x in zip(t.ids, t.rollout, strict=True)}
    now, old = policies.now.tolist(), policies.old.tolist()
    weight = {i: min(math.exp(old[i] - rollout[i]), 2.0) for i in every}
    mean_weight = sum(weight.values()) / len(every)
    outward = sorted(
        (now[i] - rollout[i]) ** 2 for i in every if (now[i] - rollout[i]) * of[i].advantage > 0
    )
    while outward and sum(outward) / len(outward) > 0.04:
        outward.pop()
    out = {}
    for ids in trained:
        for i in ids:
            a, ratio = of[i].advantage, math.exp(now[i] - old[i])
            kept = not (a > 0 and ratio > 1.2) and not (a < 0 and ratio < 0.8)
            grad = -ratio * a * kept
            if name == "tis":
                grad *= weight[i]
            elif name == "normalised":
                grad *= weight[i] / mean_weight
            elif name == "icepop":
                w = math.exp(old[i] - rollout[i])
                grad *= w * (0.5 <= w <= 5)
            elif name == "m2po":
                x = now[i] - rollout[i]
                inside = x * a <= 0 or (outward and x * x <= outward[-1] * (1 + 1e-9))
                grad = -math.exp(x) * a * bool(inside)
            elif name == "kl":
                grad += 0.3 * (now[i] - policies.ref[i].item())
            n = NORM if name == "dr_grpo" and not per_token else len(ids)
            out[i] = grad / len(every) if per_token else grad / n / len(step)
    return out


CUTS = st.lists(st.lists(st.integers(1, 39), max_size=4), min_size=8, max_size=8)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=8),
    cuts=CUTS,
    seed=st.integers(0, 99),
    ranks=st.integers(1, 3),
    steps=st.integers(1, 2),
    max_tokens=st.integers(10, 200),
)
def test_a_tokens_gradient_does_not_know_where_its_trajectory_was_cut(
    name: str,
    per_token: bool,
    lengths: list[int],
    cuts: list[list[int]],
    seed: int,
    ranks: int,
    steps: int,
    max_tokens: int,
) -> None:
    config = AlgorithmConfig(**CONFIGS[name], calculate_per_token_loss=per_token)
    trajectories, policies = make(lengths, seed)
    norm = NORM if name == "dr_grpo" and not per_token else None
    rows = rows_of(trajectories, cuts[: len(lengths)], norm)
    got, at_entropy, ess = gradients(rows, policies, config, ranks, steps, max_tokens)
    want: dict[int, float] = {}
    parts = [p for p in np.array_split(np.arange(len(lengths)), steps) if len(p)]
    for part in parts:
        want |= loop([trajectories[i] for i in part], policies, name, per_token=per_token)
    scale = max(map(abs, want.values()))
    for i in range(len(got)):
        assert got[i].item() == pytest.approx(want.get(i, 0.0), rel=1e-5, abs=1e-6 * scale + 1e-12)
    whole = rows_of(trajectories, [[] for _ in lengths], norm)
    uncut = gradients(whole, policies, config, 1, steps, 10_000)
    torch.testing.assert_close(at_entropy, uncut[1], rtol=1e-5, atol=1e-9)
    assert ess == pytest.approx(uncut[2], rel=1e-5)


def test_one_response_of_100_tokens_cut_90_and_10() -> None:
    trajectories, policies = make([100, 30], 1)
    trajectories = [dataclasses.replace(t, mask=[1] * len(t.ids)) for t in trajectories]
    config = AlgorithmConfig(use_tis=True)
    uncut, cut = (
        gradients(rows_of(trajectories, [places, []], None), policies, config, 1, 1, 1000)[0]
        for places in ([], [90])
    )
    torch.testing.assert_close(cut, uncut, rtol=1e-6, atol=1e-12)


def test_a_trajectory_without_a_trained_token_counts_once() -> None:
    trajectories, _ = make([12, 8], 3)
    trajectories[1] = dataclasses.replace(trajectories[1], mask=[0] * 8)
    rows = rows_of(trajectories, [[4, 7], [2, 5]], None)
    assert [r.weight for r in rows[3:]] == pytest.approx([1 / 3] * 3)
    batch = make_batch(
        rows, rollout_id=0, policy_version=0, num_dp_ranks=1, max_tokens=100, global_batch_size=1
    )
    assert len(batch.steps) == 2
    assert sum(s.num_samples for s in batch.steps) == pytest.approx(2.0)
