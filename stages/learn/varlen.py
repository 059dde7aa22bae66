"""Attention over packed sequences in one FlashAttention call, for GPUs without TransformerEngine:
no mask, and no padding.

A sequence's queries may be fewer than its keys: they are its last tokens, and look at all before
them and at themselves. So the tails of samples that share a prompt need no mask either, nor a
context-parallel rank's chunks. The kernel is torch's (torch.nn.attention.varlen); its causal mask
is aligned to the lower right, as torch says of that operator in torch/nn/attention/bias.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAX_HEAD_DIM, HEAD_DIM_UNIT = 256, 8  # of FlashAttention 2
HALVES = (torch.bfloat16, torch.float16)
AMPERE = (8, 0)
CAUSAL = (-1, 0)  # the kernel's window: any number of tokens back, none ahead


@dataclass(frozen=True, slots=True)
class Varlen:
    """n sequences whose queries lie end to end: sequence i has the queries [queries[i],
    queries[i+1]) and as many of its last keys."""

    queries: Tensor  # [n + 1] int32
    keys: Tensor  # [n + 1] int32
    max_queries: int
    max_keys: int
    places: Tensor | None  # [keys[n]] int64: where keys and values lie; None: end to end too


def can_attend(device: torch.device, dtype: torch.dtype, head_dims: Sequence[int]) -> bool:
    """Is there a kernel for it?"""
    return (
        device.type == "cuda"
        and dtype in HALVES
        and max(head_dims) <= MAX_HEAD_DIM
        and torch.cuda.get_device_capability(device) >= AMPERE
    )


def cut_varlen(lengths: Sequence[int], keys: Sequence[np.ndarray], device: torch.device) -> Varlen:
    """Of sequences with so many queries each, in packed order; `keys` [>= length] int64: the places
    that each looks at, its own tokens last."""
    places = np.concatenate(keys)
    in_place = np.array_equal(places, np.arange(sum(lengths)))

    def ends(sizes: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.cumsum([0, *sizes])).to(device=device, dtype=torch.int32)

    return Varlen(
        queries=ends(lengths),
        keys=ends([len(k) for k in keys]),
        max_queries=max(lengths),
        max_keys=max(map(len, keys)),
        places=None if in_place else torch.from_numpy(places).to(device),
    )


def attend_varlen(query: Tensor, key: Tensor, value: Tensor, cut: Varlen, scale: float) -> Tensor:
    """query: [t, heads, dim]; key: [k, kv_heads, dim]; value: [k, kv_heads, value_dim]; returns [t,
    heads, value_dim]."""
    from torch.nn.attention import varlen

    if cut.places is not None:
        key, value = (x.index_select(0, cut.places) for x in (key, value))
    widest = max(query.shape[-1], value.shape[-1])
    width = -(-widest // HEAD_DIM_UNIT) * HEAD_DIM_UNIT
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (query, key, value))
    out = varlen.varlen_attn(
        q,
        k,
        v,
        cut.queries,
        cut.keys,
        cut.max_queries,
        cut.max_keys,
        scale=scale,
        window_size=CAUSAL,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)  # asked for nothing beside it
    return out[..., : value.shape[-1]]
