"""The policy loss of trained tokens, uncorrected, that the flags choose, and the range of its
clip."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from configs.correction import Correction
from configs.schema import AlgorithmConfig
from stages.learn.corrections import MAX_LOG_RATIO
from stages.learn.losses import (
    Gamma,
    PolicyLoss,
    compute_cispo_loss,
    compute_gspo_kl,
    compute_policy_loss,
    compute_sapo_loss,
    compute_sft_loss,
    compute_vespo_loss,
)
from stages.learn.outcome import TrainedTokens
from stages.learn.reduce import spread


def surrogate_loss(
    log_probs: Tensor,
    anchor: Tensor,
    advantages: Tensor,
    batch: TrainedTokens,
    config: AlgorithmConfig,
    correction: Correction,
    clip: tuple[Any, Any],
) -> PolicyLoss:
    """The policy loss that --loss-type and --advantage-estimator choose, uncorrected. `clip`: as
    clip_range says."""
    if config.loss_type == "sft_loss":
        ratio = (log_probs - anchor).detach().exp()
        return PolicyLoss(
            compute_sft_loss(log_probs), torch.zeros_like(ratio, dtype=torch.bool), ratio
        )
    low, high = clip
    if config.advantage_estimator == "cispo":
        return compute_cispo_loss(log_probs, anchor, advantages, eps_clip=low, eps_clip_high=high)
    if config.advantage_estimator == "sapo":
        return compute_sapo_loss(
            log_probs, anchor, advantages, tau_pos=config.sapo_tau_pos, tau_neg=config.sapo_tau_neg
        )
    if config.advantage_estimator == "vespo":
        return compute_vespo_loss(
            log_probs,
            anchor,
            advantages,
            batch.token_counts,
            positive=Gamma(config.vespo_k_pos, config.vespo_lambda_pos),
            negative=Gamma(config.vespo_k_neg, config.vespo_lambda_neg),
        )
    eps = low if correction.ppo_clip else None
    if config.advantage_estimator == "gspo":
        kl = compute_gspo_kl(log_probs, anchor, batch.token_counts)
        return compute_policy_loss(
            -kl,
            torch.zeros_like(kl),
            advantages,
            eps_clip=eps,
            eps_clip_high=high,
            eps_clip_c=config.eps_clip_c,
        )
    return compute_policy_loss(
        log_probs,
        anchor,
        advantages,
        eps_clip=eps,
        eps_clip_high=high,
        eps_clip_c=config.eps_clip_c,
    )


def clip_range(batch: TrainedTokens, config: AlgorithmConfig) -> tuple[Any, Any]:
    """(eps_clip, eps_clip_high): numbers, or [N] where they shrink with staleness s: eps / (1 +
    staleness_clip_decay * s).

    No paper is the source: PPO's range bounds one update's distance from the anchor, and a stale
    sample's anchor is already that many updates away."""
    high = config.eps_clip if config.eps_clip_high is None else config.eps_clip_high
    if not config.staleness_clip_decay:
        return config.eps_clip, high
    shrink = spread(
        1.0 / (1.0 + config.staleness_clip_decay * batch.staleness.to(torch.float32)),
        batch.token_counts,
    )
    return config.eps_clip * shrink, high * shrink


def moment_clip(cut: float) -> tuple[float, float]:
    """(eps_clip, eps_clip_high) of M2PO's authors from the largest squared log-ratio within the
    budget: exp(-+sqrt(cut)), never narrower than 0.3 and 0.5 (their miniclip_low, miniclip_high);
    no clip where the budget asks for none."""
    tau = math.sqrt(cut)
    high = math.expm1(min(tau, MAX_LOG_RATIO)) if tau < math.inf else math.inf
    return max(-math.expm1(-tau), 0.3), max(high, 0.5)
