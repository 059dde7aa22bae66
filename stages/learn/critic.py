"""PPO's critic as pure tensor functions: generalised advantage estimation, the value loss,
whitening.

Shapes: N trained tokens, flattened over samples; S samples, `token_counts` [S] of them each. Time
counts in trained tokens: the values of what a tool said are never asked for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

WHITEN_EPSILON = 1e-8


class Gae(NamedTuple):
    advantages: Tensor  # [N] float32
    returns: Tensor  # [N] float32: what the values should have been


def compute_gae(
    rewards: Tensor, values: Tensor, token_counts: Tensor, *, gamma: float = 1.0, lambd: float = 1.0
) -> Gae:
    """Advantages and returns of every trained token. rewards, values: [N]; token_counts: [S], sum
    N; no gradient.

    delta_t = r_t + gamma V_{t+1} - V_t with V = 0 behind the last token; A_t = delta_t + gamma
    lambd A_{t+1}; return_t = A_t + V_t. Summed in float64 on the CPU, right to left over all
    samples at once: O(longest sample) steps. Source: Schulman et al. 2015, arXiv:1506.02438, eq.
    16; slime's get_advantages_and_returns."""
    counts = token_counts.to("cpu", torch.int64)
    if int(counts.sum()) != values.numel() or rewards.shape != values.shape:
        raise ValueError(
            f"{rewards.numel()} rewards and {values.numel()} values for {int(counts.sum())} trained"
            " tokens"
        )
    longest = int(counts.max()) if len(counts) else 0
    inside = torch.arange(longest) < counts[:, None]  # [S, longest]
    r, v = (torch.zeros(len(counts), longest, dtype=torch.float64) for _ in range(2))
    r[inside], v[inside] = (
        rewards.detach().to("cpu", torch.float64),
        values.detach().to("cpu", torch.float64),
    )
    delta = r - v
    delta[:, :-1] += gamma * v[:, 1:]
    out, running = torch.zeros_like(delta), torch.zeros(len(counts), dtype=torch.float64)
    # behind a sample's end rewards and values are 0, and so is what runs
    for t in range(longest - 1, -1, -1):
        running = delta[:, t] + gamma * lambd * running
        out[:, t] = running
    advantages = out[inside]
    returns = advantages + v[inside]
    return Gae(*(x.to(values.device, torch.float32) for x in (advantages, returns)))


class ValueLoss(NamedTuple):
    loss: Tensor  # [N]
    clipped: Tensor  # [N] bool: the value was further than the clip from the old one


def compute_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, value_clip: float
) -> ValueLoss:
    """max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) a token. All [N].

    Source: OpenAI baselines' PPO2 (described in arXiv:2005.12729, section 3); without its factor
    1/2, as slime has it, which counts clips as we do: by |V - V_old| > c, not by which branch was
    the larger, for rounding decides that where nothing was clipped."""
    moved = values - old_values
    bounded = old_values + moved.clamp(-value_clip, value_clip)
    plain, clipped = (values - returns).square(), (bounded - returns).square()
    return ValueLoss(torch.maximum(plain, clipped), moved.abs() > value_clip)


def whiten_over_ranks(values: list[Tensor], group: Any = None) -> list[Tensor]:
    """(x - mean) / sqrt(var + 1e-8), mean and unbiased variance over all of `values` on all ranks
    of `group`; equal values become 0.

    Two passes in float64: the sum first, then the squares about the mean.
    """
    flat = torch.cat(values).double()
    total = torch.stack([flat.sum(), flat.new_tensor(float(flat.numel()))])
    if group is not None:
        dist.all_reduce(total, group=group)
    mean, count = total[0] / total[1].clamp(min=1), total[1]
    squares = (flat - mean).square().sum()
    if group is not None:
        dist.all_reduce(squares, group=group)
    std = (squares / (count - 1).clamp(min=1) + WHITEN_EPSILON).sqrt()
    return [((v.double() - mean) / std).to(v.dtype) for v in values]
