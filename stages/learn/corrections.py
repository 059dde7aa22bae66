"""Off-policy correction: importance weights and masks of trained tokens, from one `Correction`.
Pure.

Shapes: N trained tokens, flattened over S samples. `log_probs` is the ratio's numerator: the old
policy's (decoupled) or the new one's, detached (bypass); see configs/correction.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from configs.correction import Correction, Rejection
from stages.learn.reduce import mean_per_sample, sample_of_token, spread, sum_per_sample

MAX_LOG_RATIO = 20.0  # exp of more is of no use to anyone, and overflows in sums


class BatchStatistics(NamedTuple):
    """What a correction must know of the whole optimizer step, over all ranks."""

    mean_weight: float = 1.0
    # M2PO: the largest squared log-ratio that is kept, or at which PPO's clip is
    cut: float = float("inf")


class Evidence(NamedTuple):
    """One micro-batch's part in `BatchStatistics`."""

    sum_weights: float
    num_weights: float
    second_moments: Tensor  # [M], of the tokens that M2PO looks at


class CorrectionResult(NamedTuple):
    weights: Tensor  # [N] float32, no gradient; 0 where dropped
    mask: Tensor  # [N] bool: False where dropped
    # [N] each: ratio (at the correction's level, untouched), truncated (0 or 1)
    metrics: dict[str, Tensor]


def compute_correction(
    correction: Correction,
    log_probs: Tensor,
    rollout_log_probs: Tensor,
    advantages: Tensor,
    token_counts: Tensor,
    statistics: BatchStatistics | None = None,
) -> CorrectionResult:
    """(weights, mask, metrics) of the trained tokens: the loss of a token is multiplied by its
    weight, a dropped token has none.

    log_probs, rollout_log_probs, advantages: [N]; token_counts: [S]. With r_t = exp(log_probs -
    rollout_log_probs) the weight is r_t, the product over the sample (sequence) or its geometric
    mean, within its bounds; every rejection then drops by its own measure, at its own level.
    `statistics` None: these tokens are the whole optimizer step. Sources:
    `configs.corrections.PRESETS`, `configs.correction.Rejection`."""
    if statistics is None:
        evidence = batch_evidence(
            correction, log_probs, rollout_log_probs, advantages, token_counts
        )
        statistics = batch_statistics(correction, [evidence])
    weights, mask, ratio = _act(
        correction, log_probs, rollout_log_probs, advantages, token_counts, statistics.cut
    )
    truncated = weights != (ratio if correction.weighted else torch.ones_like(ratio))
    if correction.batch_normalize and correction.weighted:
        weights = weights / max(statistics.mean_weight, 1e-8)
    return CorrectionResult(weights * mask, mask, {"ratio": ratio, "truncated": truncated.float()})


def batch_evidence(
    correction: Correction,
    log_probs: Tensor,
    rollout_log_probs: Tensor,
    advantages: Tensor,
    token_counts: Tensor,
    shares: Tensor | None = None,
) -> Evidence:
    """What one micro-batch adds to the statistics of the optimizer step. Shapes as in
    `compute_correction`.

    Normalisation is over kept tokens at token level, and over samples with a kept token at the
    other levels, where a sample has one weight: there each counts its part of its trajectory,
    `shares` [S] (None: 1)."""
    nothing = torch.zeros(0)
    if not correction.needs_statistics:
        return Evidence(0.0, 0.0, nothing)
    x = _log_ratio(log_probs, rollout_log_probs)
    if correction.looks_at_moments:
        return Evidence(0.0, 0.0, x[_concerned("outward", x, advantages)].square().cpu())
    weights, mask, _ = _act(
        correction, log_probs, rollout_log_probs, advantages, token_counts, float("inf")
    )
    if correction.level == "token":
        return Evidence(float((weights.double() * mask).sum()), float(mask.sum()), nothing)
    kept = sum_per_sample(mask.float(), token_counts)
    total = sum_per_sample(weights * mask, token_counts)[kept > 0] / kept[kept > 0]
    share = (torch.ones_like(kept) if shares is None else shares).double()[kept > 0]
    return Evidence(float((total.double() * share).sum()), float(share.sum()), nothing)


def batch_statistics(correction: Correction, evidence: Sequence[Evidence]) -> BatchStatistics:
    """Statistics of the optimizer step from all its micro-batches on all ranks; their order and cut
    do not matter."""
    num = sum(e.num_weights for e in evidence)
    mean = sum(e.sum_weights for e in evidence) / num if num else 1.0
    if not correction.looks_at_moments:
        return BatchStatistics(mean_weight=mean)
    moments, _ = torch.cat([e.second_moments.double() for e in evidence]).sort()
    if correction.clip_budget is not None:
        return BatchStatistics(cut=capped_cut(moments, correction.clip_budget))
    (rejection,) = (r for r in correction.rejections if r.measure == "second_moment")
    return BatchStatistics(cut=kept_cut(moments, rejection.high))


def kept_cut(moments: Tensor, most: float) -> float:
    """The largest of the sorted `moments` [M] so that the mean of it and all smaller ones is at
    most `most`; infinity where all are, -1 where none is."""
    means = moments.cumsum(0) / torch.arange(1, len(moments) + 1)
    # equal ones are kept, or dropped, together
    means = means[torch.searchsorted(moments, moments, right=True) - 1]
    keep = int((means <= most).sum())  # the running mean of sorted values never falls
    return float("inf") if keep == len(moments) else float(moments[keep - 1]) if keep else -1.0


def capped_cut(moments: Tensor, budget: float) -> float:
    """The largest of the sorted `moments` [M] so that with all larger ones capped at it their mean
    is below `budget`; infinity where it is at most that without a cap, 0 where no cap is enough.

    Source: M2PO's authors, Infini-AI-Lab/M2PO, verl/trainer/ppo/core_algos.py
    (kpo_clip_harmful_tokens)."""
    n = len(moments)
    if not n or float(moments.mean()) <= budget:
        return float("inf")
    behind = n - 1 - torch.arange(n)
    below = int((moments.cumsum(0) + moments * behind < budget * n).sum())
    return float(moments[below - 1]) if below else 0.0


def _act(
    correction: Correction,
    log_probs: Tensor,
    rollout_log_probs: Tensor,
    advantages: Tensor,
    token_counts: Tensor,
    cut: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights before normalisation and mask, mask, ratio at the correction's level), [N] each."""
    x = _log_ratio(log_probs, rollout_log_probs)
    ratio = _at_level(correction.level, x, token_counts).exp()
    weights, mask = torch.ones_like(ratio), torch.ones_like(ratio, dtype=torch.bool)
    if correction.weight is not None:
        weights = ratio.clamp(correction.weight.low, correction.weight.high)
    for rejection in correction.rejections:
        outside = _outside(
            rejection, x, log_probs, rollout_log_probs, advantages, token_counts, cut
        )
        mask = mask & ~(outside & _concerned(rejection.applies_to, x, advantages))
    if correction.veto is not None:
        vetoed = sum_per_sample((x.exp() < correction.veto).float(), token_counts) > 0
        mask = mask & ~spread(vetoed, token_counts)
    return weights, mask, ratio


def _log_ratio(log_probs: Tensor, rollout_log_probs: Tensor) -> Tensor:
    return (log_probs - rollout_log_probs).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _at_level(level: str, x: Tensor, token_counts: Tensor) -> Tensor:
    """[N] log of the token's ratio, of its sample's product, or of that product's geometric
    mean."""
    if level == "token":
        return x
    per_sample = (
        sum_per_sample(x, token_counts) if level == "sequence" else mean_per_sample(x, token_counts)
    )
    return spread(per_sample.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO), token_counts)


def _concerned(applies_to: str, x: Tensor, advantages: Tensor) -> Tensor:
    """[N] bool: the tokens that a rejection may drop."""
    if applies_to == "negative":
        return advantages < 0
    if applies_to == "outward":  # where PPO's clip could act
        return ((advantages > 0) & (x > 0)) | ((advantages < 0) & (x < 0))
    return torch.ones_like(x, dtype=torch.bool)


def _outside(
    rejection: Rejection,
    x: Tensor,
    log_probs: Tensor,
    rollout_log_probs: Tensor,
    advantages: Tensor,
    token_counts: Tensor,
    cut: float,
) -> Tensor:
    """[N] bool: is the measure out of bounds?"""
    low, high = rejection.low, rejection.high
    if rejection.measure == "second_moment":
        return x.square() > cut  # in the precision in which the cut was found
    if rejection.measure == "probability":
        change = (log_probs.exp() - rollout_log_probs.exp()).detach()
        return torch.where(advantages > 0, change > high, change < -low)
    value = _over(rejection.over, _divergence(rejection.measure, x), token_counts)
    if rejection.measure == "k1":
        ratio = value.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        return (ratio < low) | (ratio > high)
    return value > high


def _divergence(measure: str, x: Tensor) -> Tensor:
    """[N] an estimate of KL(rollout || numerator) from a token of the rollout policy, but for k1,
    which is x itself. Source: Schulman, "Approximating KL Divergence" (2020),
    joschu.net/blog/kl-approx.html."""
    if measure == "k2":
        return x.square() / 2
    return x.expm1() - x if measure == "k3" else x


def _over(over: str, values: Tensor, token_counts: Tensor) -> Tensor:
    """[N]: the token's value, or its sample's sum, mean or largest."""
    if over == "token":
        return values
    if over == "max":
        least = values.new_full((len(token_counts),), -torch.inf)
        index = sample_of_token(token_counts)
        return spread(least.scatter_reduce(0, index, values, "amax"), token_counts)
    reduce = sum_per_sample if over == "sum" else mean_per_sample
    return spread(reduce(values, token_counts), token_counts)
