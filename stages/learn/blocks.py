"""Attention over samples packed end to end with torch SDPA: one batched causal call for every block
of samples of similar length.

Padding on the right needs no mask under causal attention: a real token never sees a later one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# a block may pad this share of its attention work (which goes with the square of the length)
MAX_PADDING = 0.25


@dataclass(frozen=True, slots=True)
class Block:
    """Packed tokens [start, end): `num` samples, padded to `length`. `index` [end - start]: their
    places in [num * length]."""

    start: int
    end: int
    num: int
    length: int
    index: Tensor | None  # None: all of equal length, nothing to pad


def cut_blocks(lengths: Sequence[int], device: torch.device) -> tuple[Block, ...]:
    """Blocks over samples packed in this order; they are few when `lengths` are sorted, and any
    order is right."""
    blocks, first, start = [], 0, 0
    while first < len(lengths):
        last, top, work = first + 1, lengths[first], lengths[first] ** 2
        while last < len(lengths):
            new_top, new_work = max(top, lengths[last]), work + lengths[last] ** 2
            if new_work < (1 - MAX_PADDING) * (last + 1 - first) * new_top**2:
                break
            last, top, work = last + 1, new_top, new_work
        part = lengths[first:last]
        index = None
        if min(part) != top:
            index = torch.cat(
                [torch.arange(n, device=device) + i * top for i, n in enumerate(part)]
            )
        blocks.append(Block(start, start + sum(part), len(part), top, index))
        first, start = last, start + sum(part)
    return tuple(blocks)


class PackedPlaces(Protocol):
    """Tells where packed tokens go in a padded block."""

    @property
    def num(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def index(self) -> Tensor | None: ...


class ScatterRows(torch.autograd.Function):
    """Moves [t, d] rows to their places in [size, d], with zeros elsewhere.

    Places are distinct, so the backward is a plain gather."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(index)
        return rows.new_zeros(size, rows.shape[1]).index_copy_(0, index, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


class GatherRows(torch.autograd.Function):
    """The rows at distinct places: the inverse of ScatterRows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = rows.shape[0]
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        return grad.new_zeros(ctx.size, grad.shape[1]).index_copy_(
            0, ctx.saved_tensors[0], grad
        ), None


def attend_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Sequence[Block],
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """query: [t, heads, dim]; key: [t, kv_heads, dim]; value: [t, kv_heads, value_dim]; returns [t,
    heads, value_dim].

    Every sample attends to itself, causally; with `window` a token sees itself and the `window` - 1
    before it."""
    parts = [
        attend_block(
            b,
            query[b.start : b.end],
            key[b.start : b.end],
            value[b.start : b.end],
            scale=scale,
            window=window,
        )
        for b in blocks
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def attend_block(
    block: Block,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """As attend_blocks, for the tokens of one block."""
    q, k, v = (batched(block, x) for x in (query, key, value))
    mask = None
    if window is not None and window < block.length:
        ones = torch.ones(block.length, block.length, dtype=torch.bool, device=q.device)
        mask = ones.tril() & ones.triu(1 - window)
    gqa = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=gqa
    )
    rows = out.transpose(1, 2).reshape(block.num * block.length, -1)
    return (rows if block.index is None else GatherRows.apply(rows, block.index)).view(
        len(query), -1, v.shape[-1]
    )


def batched(block: PackedPlaces, x: Tensor) -> Tensor:
    """[tokens, heads, dim] (or [tokens, 1, heads, dim]) -> [num, heads, length, dim]"""
    heads, dim = x.shape[-2:]
    rows = x.reshape(len(x), heads * dim)
    if block.index is not None:
        rows = ScatterRows.apply(rows, block.index, block.num * block.length)
    return rows.view(block.num, block.length, heads, dim).transpose(1, 2)
