"""Losses and off-policy corrections: pure tensor functions over the trained tokens of a micro-batch.

Shapes: N trained tokens, flattened over samples; V vocabulary entries (of this tensor-parallel rank); S samples.
Policies: rollout (behaviour: the engine sampled from it), old (proximal: the learner at consumption), new (differentiated).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

KlType = Literal["k1", "k2", "k3", "low_var_kl"]
_ROWS = 512  # rows of logits handled at once: keeps temporaries of [rows, V] in cache-sized pieces


class TokenLogProbs(NamedTuple):
    log_probs: Tensor  # [N] float32
    entropy: Tensor | None  # [N] float32, nats


class _LogProbs(torch.autograd.Function):
    """log softmax at the target and entropy, both differentiable, with one [N, V] buffer kept for the backward pass.

    With a process group each rank holds V columns from `start` on; maxima and sums run over the group.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, group: Any, start: int, with_entropy: bool) -> tuple[Tensor, Tensor]:
        x = logits.float()
        top = x.amax(-1, keepdim=True)
        if group is not None:
            dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
        # The one full-size buffer: shifted logits, turned into log-probs in place below.
        log_p = x - top if logits.dtype == torch.float32 else x.sub_(top)
        sums = torch.empty(2, len(x), dtype=torch.float32, device=x.device)
        for at in range(0, len(x), _ROWS):
            piece = log_p[at : at + _ROWS]
            exp = piece.exp()
            sums[0, at : at + _ROWS] = exp.sum(-1)
            # sum(exp * shifted): the entropy is log(sum exp) - sum(exp * shifted) / sum(exp)
            sums[1, at : at + _ROWS] = torch.linalg.vecdot(exp, piece) if with_entropy else 0.0
        local = targets - start
        mine = (local >= 0) & (local < x.shape[-1])
        index = local.clamp(0, x.shape[-1] - 1)
        picked = log_p.gather(-1, index[:, None])[:, 0].masked_fill(~mine, 0.0)
        if group is not None:
            packed = torch.cat([sums, picked[None]])
            dist.all_reduce(packed, group=group)
            sums, picked = packed[:2], packed[2]
        log_sum = sums[0].log()
        entropy = log_sum - sums[1] / sums[0]
        log_p -= log_sum[:, None]
        ctx.save_for_backward(log_p, index, mine, entropy)
        ctx.with_entropy, ctx.dtype = with_entropy, logits.dtype
        return picked - log_sum, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        log_p, index, mine, entropy = ctx.saved_tensors
        g_log_prob, g_entropy = grads
        # d log p_t / d x = onehot(t) - p;   d H / d x = -p (log p + H). Written over the saved buffer: a second backward is not possible.
        for at in range(0, len(log_p), _ROWS):
            rows = slice(at, at + _ROWS)
            piece = log_p[rows]
            if ctx.with_entropy:
                scale = torch.addcmul(g_log_prob[rows, None], g_entropy[rows, None], piece + entropy[rows, None])
                piece.exp_().mul_(scale.neg_())
            else:
                piece.exp_().mul_(-g_log_prob[rows, None])
        log_p.scatter_add_(-1, index[:, None], (g_log_prob * mine)[:, None])
        return log_p.to(ctx.dtype), None, None, None, None


def compute_log_probs_from_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = True,
    group: Any = None,
    vocab_start: int = 0,
) -> TokenLogProbs:
    """Log-probabilities of `targets` under softmax(logits / temperature), and the entropy of each row.

    logits: [N, V], any float type (computed in float32); targets: [N] int64 in the whole vocabulary. `group` and
    `vocab_start`: the tensor-parallel group over which V is split and the first entry of this rank. Entropy is in nats,
    None without `with_entropy`. Both results are differentiable, once.
    """
    scaled = logits if temperature == 1.0 else logits / temperature
    log_probs, entropy = _LogProbs.apply(scaled, targets, group, vocab_start, with_entropy)
    return TokenLogProbs(log_probs, entropy if with_entropy else None)


def compute_approx_kl(log_probs: Tensor, ref_log_probs: Tensor, kl_type: KlType = "k3") -> Tensor:
    """Per-token estimate of KL(p || ref) from tokens sampled by p. Both [N]; returns [N].

    With x = log p - log ref: k1 = x (unbiased, high variance), k2 = x^2 / 2 (biased, low variance),
    k3 = exp(-x) - 1 + x (unbiased, non-negative); low_var_kl is k3 clamped to [-10, 10].
    Source: Schulman, "Approximating KL Divergence" (2020), http://joschu.net/blog/kl-approx.html.
    """
    x = log_probs - ref_log_probs
    if kl_type == "k1":
        return x
    if kl_type == "k2":
        return x.square() / 2
    k3 = torch.expm1(-x) + x
    if kl_type == "k3":
        return k3
    if kl_type == "low_var_kl":
        return k3.clamp(-10.0, 10.0)
    raise ValueError(f"unknown KL estimate {kl_type!r}: expected k1, k2, k3 or low_var_kl")


class PolicyLoss(NamedTuple):
    loss: Tensor  # [N]
    clipped: Tensor  # [N] bool: the clipped branch was the larger one (no gradient there)
    ratio: Tensor  # [N]


def compute_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, eps_clip: float, eps_clip_high: float | None = None
) -> PolicyLoss:
    """Clipped surrogate: max(-r A, -clip(r, 1 - eps_clip, 1 + eps_clip_high) A) with r = exp(log_probs - old_log_probs).

    All [N]. Source: PPO, Schulman et al. 2017, arXiv:1707.06347, eq. 7 (negated); a higher upper bound is DAPO's
    "clip-higher", Yu et al. 2025, arXiv:2503.14476, eq. 10. `eps_clip_high` None means `eps_clip`.
    """
    high = eps_clip if eps_clip_high is None else eps_clip_high
    ratio = (log_probs - old_log_probs).exp()
    plain = -ratio * advantages
    bounded = -ratio.clamp(1.0 - eps_clip, 1.0 + high) * advantages
    return PolicyLoss(torch.maximum(plain, bounded), bounded > plain, ratio)


class ImportanceWeights(NamedTuple):
    weights: Tensor  # [N], truncated; no gradient
    raw: Tensor  # [N], exp(old - rollout)
    clipped: Tensor  # [N] bool: truncated at either end


def compute_tis_weights(old_log_probs: Tensor, rollout_log_probs: Tensor, *, clip: float = 2.0, clip_low: float = 0.0) -> ImportanceWeights:
    """Truncated importance sampling weight clamp(exp(old - rollout), clip_low, clip) that multiplies the policy loss. All [N].

    Corrects for the gap between what the engine sampled from (other weights, other kernels) and the proximal policy.
    Source: Ionides 2008, "Truncated Importance Sampling"; for RL of language models Yao et al. 2025, "Your Efficient RL
    Framework Secretly Brings You Off-Policy RL Training", https://fengyao.notion.site/off-policy-rl; slime's --use-tis.
    """
    raw = (old_log_probs - rollout_log_probs).detach().exp()
    weights = raw.clamp(clip_low, clip)
    return ImportanceWeights(weights, raw, weights != raw)


def compute_ess_fraction(sum_weights: Tensor, sum_squares: Tensor, count: Tensor) -> Tensor:
    """Effective sample size over sample size: (sum w)^2 / (n sum w^2), in (0, 1]; takes the sums, which add up over ranks.

    Source: Kish 1965, "Survey Sampling"; Kong 1992 for importance weights.
    """
    return sum_weights.square() / (count * sum_squares)


def token_weights(token_counts: Tensor, *, per_token: bool, sample_weights: Tensor | None = None) -> Tensor:
    """[N] weight of every trained token in the loss sum, from `token_counts` [S] (trained tokens a sample, sum N).

    per_token False: 1 / count, so that the weighted sum is the sum over samples of each sample's mean (slime's
    sum_of_sample_mean; divide by the number of samples); True: 1 (divide by the number of tokens; DAPO, eq. 8).
    `sample_weights` [S] multiply each sample's.
    """
    counts = token_counts.to(torch.int64)
    per_sample = torch.ones(len(counts), device=counts.device) if per_token else 1.0 / counts.clamp(min=1)
    if sample_weights is not None:
        per_sample = per_sample * sample_weights
    return per_sample.to(torch.float32).repeat_interleave(counts)


def sum_of_sample_mean(values: Tensor, token_counts: Tensor) -> Tensor:
    """Sum over samples of the mean over each sample's trained tokens. values: [N]; token_counts: [S]. Empty samples add 0."""
    return (values * token_weights(token_counts, per_token=False)).sum()


def sum_of_tokens(values: Tensor, token_counts: Tensor) -> Tensor:
    """Sum over all trained tokens (the reducer of the per-token mean). values: [N]; token_counts: [S], checked."""
    if int(token_counts.sum()) != values.numel():
        raise ValueError(f"{values.numel()} values for {int(token_counts.sum())} trained tokens")
    return values.sum()


def compute_sft_loss(log_probs: Tensor) -> Tensor:
    """[N] cross entropy of the trained tokens: their negative log-probabilities."""
    return -log_probs
