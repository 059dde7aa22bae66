"""Importance weights of whole trajectories, whose samples lie in any micro-batch of any rank."""

from __future__ import annotations

import math

from torch import Tensor

from stages.learn.reduce import sum_per_sample


def log_weight_sums(
    log_ratio: Tensor, token_counts: Tensor, trajectories: Tensor, num_trajectories: int
) -> Tensor:
    """[num_trajectories] this micro-batch's part of each trajectory's log weight, the sum of the
    log-ratios of its trained tokens: the parts add up over micro-batches and ranks.

    log_ratio: [N]; token_counts: [S]; trajectories: [S], of which each sample is part."""
    parts = sum_per_sample(log_ratio.detach(), token_counts)
    named = trajectories.where(token_counts > 0, 0)  # a filler's part is 0, it names none
    return parts.new_zeros(num_trajectories).index_add(0, named, parts)


def trajectory_ess_fraction(
    log_weights: Tensor, *, low: float = 0.0, high: float = math.inf
) -> float:
    """(sum w)^2 / (n sum w^2) of n trajectories with weights exp(log_weights) brought into [low,
    high]; 1 without any. In float64, about the largest weight: no sum overflows or vanishes.

    Source: Kish 1965, "Survey Sampling"; over trajectories VCPO, Huang et al. 2026,
    arXiv:2602.17616, section 4 (compute_ess_info of its authors' code, ess_ratio; with a bound its
    ess_ratio_clipped)."""
    if not len(log_weights):
        return 1.0
    x = log_weights.double().clamp(math.log(low) if low > 0 else -math.inf, math.log(high))
    w = (x - x.amax()).exp()
    return min(1.0, float(w.sum().square() / (len(w) * w.square().sum())))
