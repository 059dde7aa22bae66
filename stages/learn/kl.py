"""Estimates of the KL divergence from sampled tokens, and the KL penalty in the advantages:
to the reference model, to a teacher."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipeline.core.errors import LearnerError

KlType = Literal["k1", "k2", "k3", "low_var_kl"]


def compute_approx_kl(
    log_probs: Tensor,
    ref_log_probs: Tensor,
    kl_type: KlType = "k3",
    importance_ratio: Tensor | None = None,
) -> Tensor:
    """Per-token estimate of KL(p || ref) from tokens sampled by p. Both [N]; returns [N].

    With x = log p - log ref: k1 = x (unbiased, high variance), k2 = x^2 / 2 (biased, low variance),
    k3 = exp(-x) - 1 + x (unbiased, non-negative); low_var_kl is k3 clamped to [-10, 10]. Source:
    Schulman, "Approximating KL Divergence" (2020), http://joschu.net/blog/kl-approx.html.
    As a loss: over tokens of p itself the gradient of k1 is 0 in expectation, whatever p is, that
    of k2 is the KL's, that of k3 is of the KL the other way round, KL(ref || p); with
    `importance_ratio` those of k1 and k3 are the KL's (arXiv:2510.01555, 2506.09477).
    `importance_ratio` [N], p over the policy that sampled the tokens, with its gradient: the
    estimate, and the gradient of k3, are then unbiased for tokens of that other policy (DeepSeek-AI
    2025, DeepSeek-V3.2, arXiv:2512.02556, section 3.1; slime's --use-unbiased-kl). It multiplies
    before the clamp."""
    x = log_probs - ref_log_probs
    if kl_type == "k1":
        kl = x
    elif kl_type == "k2":
        kl = x.square() / 2
    elif kl_type in ("k3", "low_var_kl"):
        kl = torch.expm1(-x) + x
    else:
        raise ValueError(f"unknown KL estimate {kl_type!r}: expected k1, k2, k3 or low_var_kl")
    if importance_ratio is not None:
        kl = importance_ratio * kl
    return kl.clamp(-10.0, 10.0) if kl_type == "low_var_kl" else kl


def apply_kl_to_advantages(
    advantages: Tensor,
    log_probs: Tensor,
    ref_log_probs: Tensor,
    *,
    kl_coef: float,
    kl_type: KlType = "k1",
) -> Tensor:
    """Advantages less the KL to the reference: A - kl_coef * KL(log_probs || ref). All [N]; no
    gradient passes.

    `log_probs` are the old policy's: the penalty is part of the reward, not of the loss. Each token
    pays for itself only (no return over the rest of the sample), as in slime's
    get_reinforce_plus_plus_baseline_advantages."""
    return advantages - kl_coef * compute_approx_kl(log_probs, ref_log_probs, kl_type).detach()


def reverse_kl_to_teacher(
    log_probs: Tensor, teacher_log_probs: Tensor | None, *, token_counts: Tensor
) -> Tensor:
    """[N] log p - log teacher of every trained token, in nats; no gradient. What on-policy
    distillation takes off a token's advantage.

    `log_probs` [N] are the old policy's (at consumption), not those that the engine sampled with:
    the expectation of w * gap * grad log p, where w = p / rollout, over tokens of the rollout
    policy is then the gradient of KL(p || teacher), and 0 where p is the teacher, however old the
    rollout policy is. Against the rollout policy's log-probs the gap would be 0 where *that* is the
    teacher, whatever has become of p since. Source: Agarwal et al. 2024, On-Policy Distillation of
    Language Models, arXiv:2306.13649 (reverse KL on the student's own samples); as a per-token
    advantage Lu et al. 2025, thinkingmachines.ai/blog/on-policy-distillation; at consumption as in
    slime's apply_opd_kl_to_advantages. Raises LearnerError without the teacher's log-probs."""
    if teacher_log_probs is None:
        raise LearnerError(
            f"{len(token_counts)} samples without the teacher's log-probs: --use-opd needs one for"
            " every response token"
        )
    return log_probs.detach() - teacher_log_probs
