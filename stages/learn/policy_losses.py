"""Policy losses of trained tokens: PPO's clip, dual clip, GSPO's sequence ratio, CISPO, SAPO and
VESPO. Shapes: N trained tokens, S samples."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from stages.learn.reduce import mean_per_sample, spread, sum_per_sample

Bound: TypeAlias = float | Tensor  # of all tokens, or [N] of each


class PolicyLoss(NamedTuple):
    loss: Tensor  # [N]
    clipped: Tensor  # [N] bool: a bound decided the loss (under PPO: no gradient there)
    ratio: Tensor  # [N]


def compute_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    eps_clip: Bound | None,
    eps_clip_high: Bound | None = None,
    eps_clip_c: float | None = None,
) -> PolicyLoss:
    """Clipped surrogate: max(-r A, -clip(r, 1 - eps_clip, 1 + eps_clip_high) A) with r =
    exp(log_probs - old_log_probs).

    All [N]. Source: PPO, Schulman et al. 2017, arXiv:1707.06347, eq. 7 (negated); a higher upper
    bound is DAPO's "clip-higher", Yu et al. 2025, arXiv:2503.14476, eq. 10. `eps_clip_high` None
    means `eps_clip`; `eps_clip` None: no clip. `eps_clip_c` > 1, dual clip (Ye et al. 2020,
    arXiv:1912.09729, eq. 5): where A < 0 the loss is at most -eps_clip_c A."""
    ratio = (log_probs - old_log_probs).exp()
    loss = -ratio * advantages
    clipped = torch.zeros_like(loss, dtype=torch.bool)
    if eps_clip is not None:
        bounded = -clamp_ratio(ratio, eps_clip, eps_clip_high) * advantages
        clipped = bounded > loss
        loss = torch.maximum(loss, bounded)
    if eps_clip_c is not None:
        most = -eps_clip_c * advantages
        over = (advantages < 0) & (loss > most)
        loss, clipped = torch.where(over, most, loss), clipped | over
    return PolicyLoss(loss, clipped, ratio)


def clamp_ratio(ratio: Tensor, eps_clip: Bound, eps_clip_high: Bound | None) -> Tensor:
    """clip(r, 1 - eps_clip, 1 + eps_clip_high), [N]. The bounds may differ from token to token."""
    high = eps_clip if eps_clip_high is None else eps_clip_high
    return torch.minimum(
        torch.maximum(ratio, _tensor(1.0 - eps_clip, ratio)), _tensor(1.0 + high, ratio)
    )


def _tensor(bound: Bound, like: Tensor) -> Tensor:
    return bound if isinstance(bound, Tensor) else torch.full_like(like, bound)


def compute_gspo_kl(log_probs: Tensor, old_log_probs: Tensor, token_counts: Tensor) -> Tensor:
    """[N]: for every token its sample's mean of old - new, so that exp(-kl) is GSPO's
    length-normalised sequence ratio.

    log_probs, old_log_probs: [N]; token_counts: [S]. The gradient passes to all tokens of the
    sample. Source: GSPO, Zheng et al. 2025, arXiv:2507.18071, eq. 7; the paper's clip range is 3e-4
    and 4e-4."""
    return spread(mean_per_sample(old_log_probs - log_probs, token_counts), token_counts)


def compute_opsm_mask(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    token_counts: Tensor,
    *,
    delta: float,
) -> Tensor:
    """[N] bool: False where the advantage is negative and the sample's mean of old - new, in nats a
    token, is above `delta`. log_probs, old_log_probs, advantages: [N]; token_counts: [S].

    Source: off-policy sequence masking, DeepSeek-AI 2025, DeepSeek-V3.2, arXiv:2512.02556; slime's
    compute_opsm_mask, against the same log-probs as PPO's ratio."""
    gap = mean_per_sample((old_log_probs - log_probs).detach(), token_counts)
    return ~((advantages < 0) & spread(gap > delta, token_counts))


def compute_cispo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    eps_clip: Bound,
    eps_clip_high: Bound | None = None,
) -> PolicyLoss:
    """-stop_gradient(clip(r, 1 - eps_clip, 1 + eps_clip_high)) A log_probs: clipped tokens keep a
    (bounded) gradient. All [N].

    Source: CISPO, MiniMax 2025, MiniMax-M1, arXiv:2506.13585, eq. 4 and 5 (there only the upper
    bound matters: 1 - eps_clip is kept low). `clipped` says where the ratio was out of bounds."""
    ratio = (log_probs - old_log_probs).detach().exp()
    bounded = clamp_ratio(ratio, eps_clip, eps_clip_high)
    return PolicyLoss(-bounded * advantages * log_probs, bounded != ratio, ratio)


def compute_sapo_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, tau_pos: float, tau_neg: float
) -> PolicyLoss:
    """-f(r) A with the soft gate f(r) = 4 / tau * sigmoid(tau (r - 1)) in the clip's place, tau_pos
    where A > 0, else tau_neg. All [N].

    f'(1) = 1, as without a gate; far from 1 the gradient fades, the faster the larger tau. Source:
    SAPO, Soft Adaptive Policy Optimization, arXiv:2511.20347 (1.0 and 1.05); TRL's and verl's
    sapo. Log-ratios are within +-20, as verl's."""
    ratio = (log_probs - old_log_probs).clamp(-20.0, 20.0).exp()
    tau = torch.where(advantages > 0, tau_pos, tau_neg).to(ratio.dtype)
    gate = torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    return PolicyLoss(-gate * advantages, torch.zeros_like(ratio, dtype=torch.bool), ratio)


class Gamma(NamedTuple):
    """VESPO's kernel phi(w) = exp(rate) w^k exp(-rate w): 1 at w = 1, and fading on both sides."""

    k: float
    rate: float  # the paper's lambda


def compute_vespo_loss(
    log_probs: Tensor,
    rollout_log_probs: Tensor,
    advantages: Tensor,
    token_counts: Tensor,
    *,
    positive: Gamma,
    negative: Gamma,
) -> PolicyLoss:
    """-stop_gradient(phi(w)) A log_probs, w the product of new/rollout over the token's sample,
    with the kernel `positive` where A >= 0, else `negative`. log_probs, rollout_log_probs,
    advantages: [N]; token_counts: [S].

    No length normalisation: w is the sequence's own importance weight. Source: VESPO, Shen et al.
    2026, arXiv:2602.10693; its authors' compute_policy_loss_vespo and TRL's get_gamma_weights
    (log-ratios within +-20, w at least 1e-8)."""
    x = (log_probs - rollout_log_probs).detach()
    whole = sum_per_sample(x.clamp(-20.0, 20.0), token_counts).clamp(math.log(1e-8), 20.0)
    log_w = spread(whole, token_counts)
    up = advantages >= 0
    k, rate = (torch.where(up, p, n).to(x.dtype) for p, n in zip(positive, negative, strict=True))
    phi = (rate + k * log_w - rate * log_w.exp()).exp()
    loss = -phi * advantages * log_probs
    return PolicyLoss(loss, torch.zeros_like(loss, dtype=torch.bool), x.exp())
