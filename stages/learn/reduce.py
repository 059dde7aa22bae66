"""From values of trained tokens to sums: over tokens, over samples of each sample's mean.

Shapes: N trained tokens, S samples.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_of_token(token_counts: Tensor) -> Tensor:
    """[N] int64: the sample (0 to S - 1) of every trained token. token_counts: [S], trained tokens
    a sample."""
    return torch.arange(len(token_counts), device=token_counts.device).repeat_interleave(
        token_counts
    )


def sum_per_sample(values: Tensor, token_counts: Tensor) -> Tensor:
    """[S] sums of `values` [N] over each sample's trained tokens; 0 for a sample without any."""
    return values.new_zeros(len(token_counts)).index_add(0, sample_of_token(token_counts), values)


def mean_per_sample(values: Tensor, token_counts: Tensor) -> Tensor:
    """[S] means of `values` [N] over each sample's trained tokens; 0 for a sample without any."""
    return sum_per_sample(values, token_counts) / token_counts.clamp(min=1)


def spread(per_sample: Tensor, token_counts: Tensor) -> Tensor:
    """[N]: every trained token has its sample's value of `per_sample` [S]."""
    return per_sample.repeat_interleave(token_counts)


def token_weights(
    token_counts: Tensor,
    *,
    per_token: bool,
    mask: Tensor | None = None,
    sample_weights: Tensor | None = None,
) -> Tensor:
    """[N] weight of every trained token in the loss sum, from `token_counts` [S] (trained tokens a
    sample, sum N).

    per_token False: 1 / count, so that the weighted sum is the sum over samples of each sample's
    mean (slime's sum_of_sample_mean; divide by the number of samples); True: 1 (divide by the
    number of tokens; DAPO, arXiv:2503.14476, eq. 8). With `mask` [N] dropped tokens weigh 0 and a
    sample's mean is over the others. `sample_weights` [S] multiply each sample's."""
    counts = token_counts.to(torch.int64)
    kept = (
        torch.ones(int(counts.sum()), device=counts.device)
        if mask is None
        else mask.to(torch.float32)
    )
    per_sample = torch.ones(len(counts), device=counts.device)
    if not per_token:
        per_sample = per_sample / (
            counts.to(torch.float32) if mask is None else sum_per_sample(kept, counts)
        ).clamp(min=1.0)
    if sample_weights is not None:
        per_sample = per_sample * sample_weights
    return kept * spread(per_sample.to(torch.float32), counts)


def sum_of_sample_mean(values: Tensor, token_counts: Tensor) -> Tensor:
    """Sum over samples of the mean over each sample's trained tokens. values: [N]; token_counts:
    [S]. Empty samples add 0."""
    return (values * token_weights(token_counts, per_token=False)).sum()


def sum_of_tokens(values: Tensor, token_counts: Tensor) -> Tensor:
    """Sum over all trained tokens (the reducer of the per-token mean). values: [N]; token_counts:
    [S], checked."""
    if int(token_counts.sum()) != values.numel():
        raise ValueError(f"{values.numel()} values for {int(token_counts.sum())} trained tokens")
    return values.sum()
