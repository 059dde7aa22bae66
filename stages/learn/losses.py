"""Log-probs, with all losses and corrections by one import: pure tensor functions over the trained
tokens of a micro-batch.

Shapes: N trained tokens, flattened over samples; V vocabulary entries (of this tensor-parallel
rank); S samples. Policies: rollout (behaviour: the engine sampled from it), old (proximal: the
learner at consumption), new (differentiated)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from stages.learn.corrections import compute_correction
from stages.learn.diagnostics import compute_ess_fraction
from stages.learn.kl import KlType, apply_kl_to_advantages, compute_approx_kl, reverse_kl_to_teacher
from stages.learn.policy_losses import (
    Gamma,
    PolicyLoss,
    compute_cispo_loss,
    compute_gspo_kl,
    compute_opsm_mask,
    compute_policy_loss,
    compute_sapo_loss,
    compute_vespo_loss,
)
from stages.learn.reduce import sum_of_sample_mean, sum_of_tokens, token_weights

__all__ = [
    "Gamma",
    "ImportanceWeights",
    "KlType",
    "PolicyLoss",
    "TokenLogProbs",
    "apply_kl_to_advantages",
    "compute_approx_kl",
    "compute_cispo_loss",
    "compute_correction",
    "compute_ess_fraction",
    "compute_gspo_kl",
    "compute_log_probs_from_logits",
    "compute_opsm_mask",
    "compute_policy_loss",
    "compute_sapo_loss",
    "compute_sft_loss",
    "compute_tis_weights",
    "compute_vespo_loss",
    "reverse_kl_to_teacher",
    "sum_of_sample_mean",
    "sum_of_tokens",
    "token_weights",
]

# rows of logits handled at once: what is made beside the logits does not grow with the batch
CHUNK_SIZE = 512


class TokenLogProbs(NamedTuple):
    log_probs: Tensor  # [N] float32
    entropy: Tensor | None  # [N] float32, nats


class _LogProbs(torch.autograd.Function):
    """log softmax at the target and entropy, both differentiable, with nothing of size [N, V] made
    in the forward pass.

    The softmax is computed again in the backward pass, `chunk` rows at a time. With a process group
    each rank holds V columns from `start` on; maxima and sums run over the group."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        group: Any,
        start: int,
        with_entropy: bool,
        temperature: float,
        chunk: int,
        overwrite: bool,
    ) -> tuple[Tensor, Tensor]:
        n, words = logits.shape
        local = targets - start
        mine = (local >= 0) & (local < words)
        index = local.clamp(0, max(words - 1, 0))
        top = _maxima(logits, group) / temperature
        # Rows of sums: of exp(z), of exp(z) * z, and z at the target, where z = logits /
        # temperature - top.
        sums = torch.zeros(3, n, dtype=torch.float32, device=logits.device)
        for at in range(0, n, chunk):
            rows = slice(at, at + chunk)
            z = _scaled(logits[rows], temperature).sub_(top[rows, None])
            sums[2, rows] = (
                z.gather(-1, index[rows, None])[:, 0].masked_fill_(~mine[rows], 0.0)
                if words
                else 0.0
            )
            if with_entropy:
                exp = z.exp()
                sums[1, rows] = torch.linalg.vecdot(exp, z)
            else:
                exp = z.exp_()
            sums[0, rows] = exp.sum(-1)
        if group is not None:
            dist.all_reduce(sums, group=group)
        log_sum = sums[0].log()
        entropy = log_sum - sums[1] / sums[0]
        ctx.save_for_backward(logits, index, mine, top + log_sum, entropy)
        ctx.temperature, ctx.chunk, ctx.overwrite = temperature, chunk, overwrite
        ctx.set_materialize_grads(False)
        return sums[2] - log_sum, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, index, mine, log_total, entropy = ctx.saved_tensors
        g_log_prob, g_entropy = grads
        nothing = (None,) * 7
        if g_log_prob is None and g_entropy is None:
            return None, *nothing
        out = logits.detach() if ctx.overwrite else torch.empty_like(logits)
        picked = torch.zeros_like(entropy) if g_log_prob is None else g_log_prob
        at_target = picked * mine / ctx.temperature
        # d log p_t / d z = onehot(t) - p;   d H / d z = -p (log p + H);   z = logits / temperature
        for at in range(0, len(logits), ctx.chunk):
            rows = slice(at, at + ctx.chunk)
            log_p = _scaled(logits[rows], ctx.temperature).sub_(log_total[rows, None])
            if g_entropy is None:
                piece = log_p.exp_().mul_(picked[rows, None] / -ctx.temperature)
            else:
                weight = torch.addcmul(
                    picked[rows, None], g_entropy[rows, None], log_p + entropy[rows, None]
                )
                piece = log_p.exp_().mul_(weight.div_(-ctx.temperature))
            if logits.shape[1]:
                piece.scatter_add_(-1, index[rows, None], at_target[rows, None])
            out[rows] = piece
        return out, *nothing


def _scaled(rows: Tensor, temperature: float) -> Tensor:
    """A float32 copy, divided by the temperature."""
    return rows.float() / temperature if temperature != 1.0 else rows.to(torch.float32, copy=True)


def _maxima(logits: Tensor, group: Any) -> Tensor:
    """[N] float32: the largest of each row, over all ranks of the group."""
    padding_only = logits.shape[1] == 0
    top = (
        logits.new_full((len(logits),), -torch.inf, dtype=torch.float32)
        if padding_only
        else logits.detach().amax(-1).float()
    )
    if group is not None:
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    return top


def compute_log_probs_from_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = True,
    group: Any = None,
    vocab_start: int = 0,
    chunk_size: int = CHUNK_SIZE,
    overwrite_logits: bool = False,
) -> TokenLogProbs:
    """Log-probabilities of `targets` under softmax(logits / temperature), and the entropy of each
    row.

    logits: [N, V], any float type (computed in float32); targets: [N] int64 in the whole
    vocabulary. `group` and `vocab_start`: the tensor-parallel group over which V is split and the
    first entry of this rank. Entropy is in nats, None without `with_entropy`. Both results are
    differentiable. `chunk_size`: rows taken through the softmax at once (-1: all), forwards and
    backwards: beside the logits and their gradient, memory goes with it, not with N.
    `overwrite_logits`: the backward pass writes that gradient over the logits, which must then be
    needed by nobody else, and can run once."""
    chunk = chunk_size if chunk_size > 0 else max(1, len(logits))
    log_probs, entropy = _LogProbs.apply(
        logits, targets, group, vocab_start, with_entropy, temperature, chunk, overwrite_logits
    )
    return TokenLogProbs(log_probs, entropy if with_entropy else None)


class ImportanceWeights(NamedTuple):
    weights: Tensor  # [N], truncated; no gradient
    raw: Tensor  # [N], exp(old - rollout)
    clipped: Tensor  # [N] bool: truncated at either end


def compute_tis_weights(
    old_log_probs: Tensor, rollout_log_probs: Tensor, *, clip: float = 2.0, clip_low: float = 0.0
) -> ImportanceWeights:
    """Truncated importance sampling weight clamp(exp(old - rollout), clip_low, clip) that
    multiplies the policy loss. All [N].

    Corrects for the gap between what the engine sampled from (other weights, other kernels) and the
    proximal policy. Source: Ionides 2008, "Truncated Importance Sampling"; for RL of language
    models Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training", https://fengyao.notion.site/off-policy-rl; slime's --use-tis."""
    raw = (old_log_probs - rollout_log_probs).detach().exp()
    weights = raw.clamp(clip_low, clip)
    return ImportanceWeights(weights, raw, weights != raw)


def compute_sft_loss(log_probs: Tensor) -> Tensor:
    """[N] cross entropy of the trained tokens: their negative log-probabilities."""
    return -log_probs
