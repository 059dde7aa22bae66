"""A loss, an importance-sampling correction and a sum of one's own, with slime's signatures.

    --loss-type custom_loss --custom-loss-function-path examples/hooks/custom_loss.py
    --use-tis --custom-tis-function-path examples/hooks/custom_loss.py
    --custom-pg-loss-reducer-function-path examples/hooks/custom_loss.py

All run on the learner's ranks and see trained tokens only. `args` has the learner's flags. Metrics
come back as means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def loss_function(
    args: Any, batch: dict[str, Any], logits: Tensor, sum_of_sample_mean: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Rejection fine-tuning: cross entropy of samples better than their group's mean, the others
    are left out.

    `batch`: lists with a tensor a sample (log_probs, rollout_log_probs, ref_log_probs, advantages,
    loss_masks), and targets [N], staleness [S], and current_log_probs [N], which carry the gradient
    (`logits` [1, N, V] do too, for losses that need all words)."""
    good = (torch.cat(batch["advantages"]) > 0).float()
    return sum_of_sample_mean(-batch["current_log_probs"] * good), {
        "good_fraction": sum_of_sample_mean(good)
    }


def tis_function(
    args: Any,
    *,
    pg_loss: Tensor,
    train_log_probs: list[Tensor],
    rollout_log_probs: list[Tensor],
    loss_masks: list[Tensor],
    total_lengths: list[int],
    response_lengths: list[int],
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """--use-tis's weights, and samples off by more than a tenth a token on average are dropped:
    (pg_loss [N], masks, metrics [N])."""
    gaps = [old - rollout for old, rollout in zip(train_log_probs, rollout_log_probs, strict=True)]
    masks = [mask * (gap.mean().abs() <= 0.1) for gap, mask in zip(gaps, loss_masks, strict=True)]
    ratio = torch.cat(gaps).exp()
    return pg_loss * ratio.clamp(args.tis_clip_low, args.tis_clip), masks, {"tis_ratio": ratio}


def get_pg_loss_reducer(
    total_lengths: list[int],
    response_lengths: list[int],
    loss_masks: list[Tensor],
    calculate_per_token_loss: bool = False,
) -> Callable[[Tensor], Tensor]:
    """Dr. GRPO's sum of the policy loss: a sample's tokens over a constant, so that long answers
    are not made of cheaper tokens. The learner divides by the number of trajectories."""

    def reduce(pg_loss: Tensor) -> Tensor:
        return (pg_loss * torch.cat(loss_masks)).sum() / 1024

    return reduce
