"""From the logits of a micro-batch to its share of the loss and of the metrics."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state as mpu
from torch import Tensor

from configs.schema import AlgorithmConfig
from stages.learn.losses import (
    TokenLogProbs,
    compute_approx_kl,
    compute_ess_fraction,
    compute_log_probs_from_logits,
    compute_policy_loss,
    compute_sft_loss,
    compute_tis_weights,
    token_weights,
)
from stages.learn.megatron.packing import PackedMicroBatch

# Sums over trained tokens, in this order; `loss` is already divided by the step's denominator.
SUMS = ("loss", "count", "entropy", "kl_rollout_old", "kl_old_new", "ratio", "clipped", "tis", "tis_clipped", "weight", "weight_squared")
SFT_SUMS = ("loss", "count", "correct_probability")


def log_probs_of(logits: Tensor, batch: PackedMicroBatch, *, temperature: float, vocab_shard: int, with_entropy: bool) -> TokenLogProbs:
    """logits: [1, N, words of this TP rank]; `vocab_shard`: words a rank with padding, the stride between ranks' first words."""
    split = mpu.get_tensor_model_parallel_world_size() > 1
    return compute_log_probs_from_logits(
        logits[0],
        batch.targets,
        temperature=temperature,
        with_entropy=with_entropy,
        group=mpu.get_tensor_model_parallel_group() if split else None,
        vocab_start=mpu.get_tensor_model_parallel_rank() * vocab_shard,
    )


def policy_objective(
    now: TokenLogProbs, old: Tensor | None, batch: PackedMicroBatch, config: AlgorithmConfig, denominator: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss share, SUMS [k], maxima [ratio_max]) of one micro-batch.

    Loss: sum over trained tokens of (TIS weight * clipped surrogate - entropy_coef * entropy) * token weight / denominator,
    where the denominator counts samples, or tokens with calculate_per_token_loss, over all ranks of the optimizer step.
    `old` None: no update lies between the old policy and this one, so old = now, exactly. With use_rollout_logprobs
    the ratio is against the rollout policy itself; kl_rollout_old and the weights then compare it with `now`.
    """
    assert now.entropy is not None
    proximal = now.log_probs.detach() if old is None else old
    anchor = batch.rollout_log_probs if config.use_rollout_logprobs else proximal
    surrogate = compute_policy_loss(now.log_probs, anchor, batch.advantages, eps_clip=config.eps_clip, eps_clip_high=config.eps_clip_high)
    tis = compute_tis_weights(proximal, batch.rollout_log_probs, clip=config.tis_clip, clip_low=config.tis_clip_low)
    per_token = surrogate.loss * tis.weights if config.use_tis else surrogate.loss
    if config.entropy_coef:
        per_token = per_token - config.entropy_coef * now.entropy
    per_token_loss = config.calculate_per_token_loss
    weights = token_weights(batch.token_counts, per_token=per_token_loss, sample_weights=batch.weights_of_samples(per_token=per_token_loss))
    loss = (per_token * weights).sum() / denominator
    with torch.no_grad():
        sums = [
            torch.ones_like(tis.raw),
            now.entropy,
            compute_approx_kl(batch.rollout_log_probs, proximal, "k3"),
            compute_approx_kl(anchor, now.log_probs, "k3"),
            surrogate.ratio,
            surrogate.clipped.float(),
            tis.weights,
            tis.clipped.float(),
            tis.raw,
            tis.raw.square(),
        ]
        top = surrogate.ratio.detach().amax() if len(tis.raw) else loss.new_zeros(())
        return loss, torch.cat([loss.detach()[None], torch.stack(sums).sum(-1)]), top[None]


def sft_objective(now: TokenLogProbs, batch: PackedMicroBatch, denominator: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross entropy over all trained tokens of the step: (loss share, SFT_SUMS, no maxima)."""
    loss = compute_sft_loss(now.log_probs).sum() / denominator
    detached = now.log_probs.detach()
    sums = torch.stack([loss.detach(), detached.new_tensor(float(len(detached))), detached.exp().sum()])
    return loss, sums, detached.new_zeros(1)


def policy_metrics(sums: Tensor, maxima: Tensor) -> dict[str, Any]:
    """StepResult's metrics of one optimizer step from sums over all ranks. Means are over trained tokens."""
    values = dict(zip(SUMS, sums.double(), strict=True))
    count = values["count"].clamp(min=1)
    mean = {k: float(values[k] / count) for k in SUMS[2:9]}
    ess = compute_ess_fraction(values["weight"], values["weight_squared"], count) if values["count"] > 0 else torch.ones(())
    return {
        "loss": float(values["loss"]),
        "entropy": mean["entropy"],
        "kl_rollout_old": mean["kl_rollout_old"],
        "kl_old_new": mean["kl_old_new"],
        "ratio_mean": mean["ratio"],
        "ratio_max": float(maxima[0]),
        "clip_fraction": mean["clipped"],
        "tis_mean": mean["tis"],
        "tis_clip_fraction": mean["tis_clipped"],
        "ess_fraction": float(ess),
        "num_loss_tokens": float(values["count"]),
    }
