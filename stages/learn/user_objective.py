"""The loss of a user's function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from configs.correction import Correction
from configs.schema import AlgorithmConfig
from stages.learn.corrections import compute_correction
from stages.learn.losses import PolicyLoss, TokenLogProbs, compute_approx_kl
from stages.learn.objective import loss_weights, shaped_advantages
from stages.learn.outcome import ObjectiveExtras, Outcome, TrainedTokens, diagnose


def custom_objective(
    function: Callable[..., Any],
    logits: Tensor,
    now: TokenLogProbs,
    old: Tensor | None,
    batch: TrainedTokens,
    denominator: float,
    config: AlgorithmConfig,
    extras: ObjectiveExtras,
) -> Outcome:
    """--custom-loss-function-path: f(args, batch, logits, sum_of_sample_mean) -> (loss, metrics),
    slime's signature.

    logits: [1, N, V], rows of the trained tokens only, before the temperature. `batch` has slime's
    names, a list with a tensor a sample each, trained tokens only: log_probs (old),
    rollout_log_probs, ref_log_probs (None without a reference), advantages (with
    --use-opd less the reverse KL to the teacher), loss_masks, and
    response_lengths, total_lengths; beside them targets [N], staleness [S] and, differentiable,
    current_log_probs [N]. The reducer takes [N] and divides nothing by the number of samples: the
    learner does."""
    counts = batch.token_counts.tolist()
    proximal = now.log_probs.detach() if old is None else old
    ones = torch.ones_like(proximal)
    weights = loss_weights(batch, config)
    advantages = shaped_advantages(batch, proximal, extras.ref, config, extras.opd_kl_coef)
    given = {
        "log_probs": list(proximal.split(counts)),
        "rollout_log_probs": list(batch.rollout_log_probs.split(counts)),
        "ref_log_probs": None if extras.ref is None else list(extras.ref.split(counts)),
        "advantages": list(advantages.split(counts)),
        "loss_masks": list(ones.split(counts)),
        "response_lengths": counts,
        "total_lengths": batch.sample_lengths.tolist(),
        "targets": batch.targets,
        "staleness": batch.staleness,
        "current_log_probs": now.log_probs,
    }
    loss, metrics = function(extras.args, given, logits, lambda values: (values * weights).sum())
    loss = loss / denominator
    with torch.no_grad():
        ratio = (now.log_probs - proximal).exp()
        surrogate = PolicyLoss(ratio, torch.zeros_like(ratio, dtype=torch.bool), ratio)
        none = compute_correction(
            Correction(), proximal, batch.rollout_log_probs, batch.advantages, batch.token_counts
        )
        kl_ref = (
            None
            if extras.ref is None
            else compute_approx_kl(now.log_probs, extras.ref, config.kl_loss_type)
        )
        sums, maxima = diagnose(
            loss, now, proximal, proximal, surrogate, none, kl_ref, batch, config, Correction()
        )
    return Outcome(
        loss,
        sums,
        maxima,
        {k: torch.as_tensor(v).detach().float().sum() for k, v in metrics.items()},
    )
