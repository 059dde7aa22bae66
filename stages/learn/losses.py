"""Log-probs, and all losses and corrections by one import: pure tensor functions over the trained tokens of a micro-batch.

Shapes: N trained tokens, flattened over samples; V vocabulary entries (of this tensor-parallel rank); S samples.
Policies: rollout (behaviour: the engine sampled from it), old (proximal: the learner at consumption), new (differentiated).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from stages.learn.corrections import compute_correction
from stages.learn.diagnostics import compute_ess_fraction
from stages.learn.kl import KlType, apply_kl_to_advantages, compute_approx_kl
from stages.learn.policy_losses import PolicyLoss, compute_cispo_loss, compute_gspo_kl, compute_policy_loss
from stages.learn.reduce import sum_of_sample_mean, sum_of_tokens, token_weights

__all__ = [
    "ImportanceWeights", "KlType", "PolicyLoss", "TokenLogProbs", "apply_kl_to_advantages", "compute_approx_kl", "compute_cispo_loss",
    "compute_correction", "compute_ess_fraction", "compute_gspo_kl", "compute_log_probs_from_logits", "compute_policy_loss",
    "compute_sft_loss", "compute_tis_weights", "sum_of_sample_mean", "sum_of_tokens", "token_weights",
]  # fmt: skip

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


def compute_sft_loss(log_probs: Tensor) -> Tensor:
    """[N] cross entropy of the trained tokens: their negative log-probabilities."""
    return -log_probs
