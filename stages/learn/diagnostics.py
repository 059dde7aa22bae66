"""How far off-policy a rollout is, as sums that add up exactly over micro-batches and ranks:
shares, KLs, ESS, ratio quantiles.

Everything is counted by staleness bucket; the whole is the sum of the buckets. Quantiles come from
a histogram of the log-ratio in steps of 0.02, one bin centred on 0: a quantile is within 1% of the
sample's own, 1.0 on-policy is exactly 1.0, and what is beyond exp(+-5.12) (0.006 and 167) counts at
that end."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.core.histogram import NUM_RATIO_BINS, RATIO_WIDTH, ratio_bins
from stages.learn.corrections import MAX_LOG_RATIO
from stages.learn.reduce import spread

BUCKETS = ("0", "1", "2-3", "4-7", "8+")  # staleness of the sample, in policy versions
_EDGES = (1, 2, 4, 8)
BIN_WIDTH = RATIO_WIDTH
_HALF = 256
NUM_BINS = 2 * _HALF + 1
QUANTITIES = (
    "count",
    "weight",
    "weight_squared",
    "k1",
    "k3",
    "masked",
    "truncated",
    "applied",
    "abs_diff",
)
NUM_SUMS = len(BUCKETS) * (len(QUANTITIES) + NUM_BINS)
QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}


def compute_ess_fraction(sum_weights: Tensor, sum_squares: Tensor, count: Tensor) -> Tensor:
    """Effective sample size over sample size: (sum w)^2 / (n sum w^2), in (0, 1]; takes the sums,
    which add up over ranks.

    Source: Kish 1965, "Survey Sampling"; Kong 1992 for importance weights.
    """
    return sum_weights.square() / (count * sum_squares)


def off_policy_sums(
    log_ratio: Tensor,
    ratio: Tensor,
    masked: Tensor,
    truncated: Tensor,
    applied: Tensor,
    staleness: Tensor,
    token_counts: Tensor,
) -> Tensor:
    """[NUM_SUMS] sums by staleness bucket, then the histogram of each bucket.

    log_ratio: [N], proximal - rollout, of the token; ratio: [N], at the correction's level; masked,
    truncated: [N], 0 or 1; applied: [N], the weight that multiplied the loss; staleness,
    token_counts: [S]."""
    edges = torch.tensor(_EDGES, device=staleness.device)
    bucket = spread(torch.bucketize(staleness, edges, right=True), token_counts)
    x = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    k3 = torch.expm1(x) - x  # KL(rollout || old): the tokens are the rollout policy's
    rows = torch.stack(
        [
            torch.ones_like(x),
            ratio,
            ratio.square(),
            -x,
            k3,
            masked,
            truncated,
            applied,
            log_ratio.abs(),
        ]
    )
    table = rows.new_zeros(len(QUANTITIES), len(BUCKETS)).index_add(1, bucket, rows)
    place = (x.nan_to_num() / BIN_WIDTH).round().clamp(-_HALF, _HALF).long() + _HALF
    histogram = torch.bincount(bucket * NUM_BINS + place, minlength=len(BUCKETS) * NUM_BINS)
    return torch.cat([table.flatten(), histogram.to(rows.dtype)])


def ess_of(sums: Tensor) -> float:
    """The ESS fraction over all tokens; 1 without any."""
    table = _table(sums).sum(1)
    return (
        min(1.0, float(compute_ess_fraction(table[1], table[2], table[0]))) if table[0] > 0 else 1.0
    )


def off_policy_metrics(sums: Tensor) -> dict[str, float]:
    """The metrics over all tokens and, with `/staleness_BUCKET` behind their names, over the tokens
    of every bucket that has any."""
    table, histogram = (
        _table(sums),
        sums.double()[len(QUANTITIES) * len(BUCKETS) :].view(len(BUCKETS), NUM_BINS),
    )
    whole = histogram.sum(0)
    out = _metrics_of(table.sum(1), whole, "") | ratio_bins(_inner_bins(whole))
    for i, name in enumerate(BUCKETS):
        if table[0, i] > 0:
            out |= _metrics_of(table[:, i], histogram[i], f"/staleness_{name}")
    return out


def _table(sums: Tensor) -> Tensor:
    return sums.double()[: len(QUANTITIES) * len(BUCKETS)].view(len(QUANTITIES), len(BUCKETS))


def _metrics_of(sums: Tensor, histogram: Tensor, suffix: str) -> dict[str, float]:
    values = dict(zip(QUANTITIES, sums, strict=True))
    count = values["count"].clamp(min=1)
    ess = (
        compute_ess_fraction(values["weight"], values["weight_squared"], count)
        if values["count"] > 0
        else torch.ones(())
    )
    metrics = {
        "ess_fraction": min(float(ess), 1.0),  # rounding
        "kl_rollout_old": float(values["k3"] / count),
        "kl_rollout_old_k1": float(values["k1"] / count),
        "masked_fraction": float(values["masked"] / count),
        "tis_clip_fraction": float(values["truncated"] / count),
        "tis_mean": float(values["applied"] / count),
        "train_rollout_logprob_abs_diff": float(values["abs_diff"] / count),
        **{f"rollout_ratio_{name}": _quantile(histogram, q) for name, q in QUANTILES.items()},
    }
    return {k + suffix: v for k, v in metrics.items()}


def _inner_bins(histogram: Tensor) -> list[float]:
    """The NUM_RATIO_BINS bins around 0; the outermost two include what is beyond them."""
    half = NUM_RATIO_BINS // 2
    inner = histogram[_HALF - half : _HALF + half + 1].clone()
    inner[0] += histogram[: _HALF - half].sum()
    inner[-1] += histogram[_HALF + half + 1 :].sum()
    return [float(count) for count in inner]


def _quantile(histogram: Tensor, q: float) -> float:
    """exp of the centre of the bin that holds the ceil(q n)-th smallest; 1 without any."""
    total = float(histogram.sum())
    if total == 0:
        return 1.0
    rank = torch.tensor(q * total, dtype=torch.float64).ceil().clamp(min=1)
    place = int(torch.searchsorted(histogram.cumsum(0), rank))
    return float(torch.tensor((place - _HALF) * BIN_WIDTH, dtype=torch.float64).exp())
