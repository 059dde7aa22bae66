"""Context parallelism: how the tokens of a pack lie on the ranks that share it, and what brings
their results together again.

Megatron's cut, which TransformerEngine's attention expects as well: every sequence, padded to a
multiple of 2 c for c ranks, falls into 2 c chunks, and rank i holds chunks i and 2c - 1 - i. Under
causal attention all ranks then have the same work. Source: Megatron-core's
get_batch_on_this_cp_rank; striped in Brandon et al. 2023, arXiv:2311.09431, for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ContextShare:
    """This rank's place among the `size` ranks that share every sequence."""

    size: int = 1
    rank: int = 0

    @property
    def unit(self) -> int:
        """Sequences are padded to a multiple of this many tokens."""
        return 1 if self.size == 1 else 2 * self.size

    @staticmethod
    def of_this_rank() -> ContextShare:
        return ContextShare(mpu.get_context_parallel_world_size(), mpu.get_context_parallel_rank())


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence that lie side by side on a rank: `length` from `offset` in the
    sequence, at `place` on the rank."""

    sequence: int
    offset: int
    place: int
    length: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every place of the whole pack (t tokens) lies."""

    held: np.ndarray  # [size, t / size] int64: the places that each rank holds, in its order
    chunks: tuple[Chunk, ...]  # of the rank that asked, in its order
    rank: np.ndarray  # [t] int64
    local: np.ndarray  # [t] int64: the place on that rank

    @property
    def gathered(self) -> np.ndarray:
        """[t]: where each place of the pack is when all ranks' tokens lie end to end, rank by
        rank."""
        return self.rank * self.held.shape[1] + self.local


def lay_out(lengths: Sequence[int], pad: int, share: ContextShare, *, by_sequence: bool) -> Layout:
    """Sequences of `lengths`, end to end, then one of `pad` tokens (all multiples of share.unit),
    over the ranks.

    `by_sequence`: a sequence's two chunks lie side by side, as TransformerEngine has it; else all
    first chunks come before all second ones, so that neighbours are of like length. What pads is
    the end of every rank's tokens, and in no chunk."""
    if share.size == 1:
        every = np.arange(sum(lengths) + pad)
        starts = np.cumsum([0, *lengths])
        whole = tuple(Chunk(i, 0, int(starts[i]), n) for i, n in enumerate(lengths))
        return Layout(every[None], whole, np.zeros_like(every), every)
    starts = np.cumsum([0, *lengths])
    chunks = [_chunks(lengths, share.size, rank, by_sequence) for rank in range(share.size)]
    held = [[np.arange(c.length) + starts[c.sequence] + c.offset for c in part] for part in chunks]
    for rank, part in enumerate(_chunks([pad], share.size, r, True) for r in range(share.size)):
        held[rank] += [np.arange(c.length) + starts[-1] + c.offset for c in part]
    places = np.stack([np.concatenate(h) for h in held])
    rank_of, local = np.zeros(places.size, np.int64), np.zeros(places.size, np.int64)
    rank_of[places] = np.arange(share.size)[:, None]
    local[places] = np.arange(places.shape[1])
    return Layout(places, chunks[share.rank], rank_of, local)


def _chunks(lengths: Sequence[int], size: int, rank: int, by_sequence: bool) -> tuple[Chunk, ...]:
    pairs = [(i, half) for i in range(len(lengths)) for half in (rank, 2 * size - 1 - rank)]
    if not by_sequence:
        pairs = pairs[::2] + pairs[1::2]
    out, at = [], 0
    for i, half in pairs:
        length = lengths[i] // (2 * size)
        out.append(Chunk(i, half * length, at, length))
        at += length
    return tuple(out)


class _Whole(torch.autograd.Function):
    """[n, ...] values of this rank's trained tokens -> [N, ...] of all. Every rank goes on with the
    same numbers, and takes back the gradient of its own: none is counted twice."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, own: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(own)
        out = values.new_zeros(size, *values.shape[1:]).index_copy_(0, own, values)
        # each place has one summand that is not 0: exact
        dist.all_reduce(out, group=mpu.get_context_parallel_group())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


def whole(values: Tensor, own: Tensor | None, size: int) -> Tensor:
    """Values [n, ...] of the trained tokens `own` [n] that this rank predicts -> [size, ...], the
    same on all ranks; differentiable.

    `own` None: they are all of them already.
    """
    return values if own is None else _Whole.apply(values, own, size)
