"""What torch.nn.attention.varlen.varlen_attn is documented to compute, sequence by sequence (the
kernel itself runs on GPUs alone)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def lower_right(queries: int, keys: int) -> Tensor:
    """[queries, keys]: query i of the last `queries` tokens sees itself and all before it."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    **_: Any,
) -> Tensor:
    assert window_size == (-1, 0) and query.shape[-1] == value.shape[-1]
    assert query.shape[-1] % 8 == 0, "FlashAttention wants head dims in eights"
    queries, keys = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    assert (max(queries), max(keys)) == (max_q, max_k)
    assert (len(query), len(key)) == (sum(queries), sum(keys))
    parts = []
    for q, k, v in zip(query.split(queries), key.split(keys), value.split(keys), strict=True):
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1),
            k.transpose(0, 1),
            v.transpose(0, 1),
            attn_mask=lower_right(len(q), len(k)),
            scale=scale,
            enable_gqa=enable_gqa,
        )
        parts.append(out.transpose(0, 1))
    return torch.cat(parts)
