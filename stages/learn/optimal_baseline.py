"""VCPO's off-policy optimal baseline: of every group the number that, taken off its rewards, leaves
the importance-weighted policy gradient with the least variance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.learn.reduce import mean_per_sample, spread, sum_per_sample


class TrajectoryPart(NamedTuple):
    """What one sample adds to its trajectory."""

    group: int
    trajectory: tuple[int, int]  # optimizer step, and TrainSample.trajectory in it
    reward: float
    log_weight: float  # sum over its trained tokens of log old - log rollout
    energy: float  # sum over its trained tokens of the squared gradient's size


def trajectory_parts(
    batch: Any, log_probs: Tensor, token_weights: Tensor, step: int
) -> list[TrajectoryPart]:
    """Of every sample with a trained token. batch: FlatTrainedTokens, rewards in the place of
    advantages; log_probs [N]: of the policy at consumption; token_weights [N]: what each token's
    gradient counts in the loss.

    The size of a trajectory's gradient stands for its norm in the weights, which would take a
    backward pass a trajectory. At the logits the gradient of log p(t) is onehot(t) - p, of squared
    norm (1 - p(t))^2 + sum over the others of p^2: between (1 - p(t))^2 and twice that. So the sum
    over tokens of (1 - p(t))^2 is taken, which follows from the log-prob alone, on any backend and
    layout: exact to a factor of 2 at the logits. That tokens' gradients are orthogonal, and what
    lies between logits and weights alike for all, are the assumptions of OPO (arXiv:2505.23585,
    where the length stands for it) and of the optimal token baseline (arXiv:2602.07078)."""
    counts = batch.token_counts
    gap = (log_probs - batch.rollout_log_probs).double()
    size = (token_weights * (1.0 - log_probs.exp())).double().square()
    columns = zip(
        counts.tolist(),
        batch.group_indices.tolist(),
        batch.trajectories.tolist(),
        mean_per_sample(batch.advantages.double(), counts).tolist(),
        sum_per_sample(gap, counts).tolist(),
        sum_per_sample(size, counts).tolist(),
        strict=True,
    )
    return [
        TrajectoryPart(group, (step, trajectory), reward, log_weight, energy)
        for count, group, trajectory, reward, log_weight, energy in columns
        if count
    ]


def optimal_baselines(parts: Iterable[TrajectoryPart]) -> dict[int, float]:
    """b* = sum w^2 g R / sum w^2 g of every group, over its trajectories: w the product of their
    tokens' ratios, not truncated, g the size of their gradients. The reward of a trajectory of
    several samples is their mean. Where no trajectory has a gradient: the mean reward.

    Source: VCPO, Huang et al. 2026, arXiv:2602.17616 (OPOB; compute_opob_baseline of its authors'
    code, whose weights are not truncated either). Weights are taken about the group's largest: no
    square overflows, and none is lost beside an epsilon."""
    groups: dict[int, dict[tuple[int, int], list[TrajectoryPart]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for part in parts:
        groups[part.group][part.trajectory].append(part)
    return {group: _baseline(list(found.values())) for group, found in groups.items()}


def _baseline(trajectories: list[list[TrajectoryPart]]) -> float:
    rewards = np.array([np.mean([p.reward for p in parts]) for parts in trajectories])
    log_weights = np.array([sum(p.log_weight for p in parts) for parts in trajectories])
    energies = np.array([sum(p.energy for p in parts) for parts in trajectories])
    weights = np.exp(2.0 * (log_weights - log_weights.max())) * energies
    total = weights.sum()
    return float((weights * rewards).sum() / total if total > 0 else rewards.mean())


def less_baselines(batch: Any, baselines: Mapping[int, float]) -> Tensor:
    """[N] rewards (in the place of advantages) less their group's baseline."""
    # a sample without a trained token may be of a group that nobody has seen
    own = [baselines.get(group, 0.0) for group in batch.group_indices.tolist()]
    per_sample = torch.tensor(own, dtype=batch.advantages.dtype, device=batch.advantages.device)
    return batch.advantages - spread(per_sample, batch.token_counts)
