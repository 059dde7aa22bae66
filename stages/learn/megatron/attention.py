"""Core attention and norm for Megatron's local layer spec: torch SDPA over packed sequences, no
TransformerEngine needed.

Packed tokens are cut into blocks of sequences of similar length, and each block is one batched
causal SDPA call. Padding on the right needs no mask under causal attention: a real token never sees
a later one. Where a GPU has FlashAttention's kernel for it, all are one call without masks
(stages/learn/varlen.py).

Samples of a group begin with the same prompt. It is packed once, and the samples' tails attend to
it and to themselves: the same numbers from fewer tokens (Liu et al. 2025, "Prefix Grouper:
Efficient GRPO Training through Shared-Prefix Forward").

Under context parallelism a rank holds two chunks of every sequence (context.py). A chunk is such a
tail as well: it attends to all that comes before it, on whatever rank, and to itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
)
from torch import Tensor

from stages.learn.blocks import MAX_PADDING, Block, GatherRows, attend_block, batched
from stages.learn.varlen import Varlen, attend_varlen


@dataclass(frozen=True, slots=True)
class TailBlock:
    """Packed tokens [start, end): `num` tails, padded to `length`, each after a prefix that lies
    elsewhere, padded to `prefix`."""

    start: int
    end: int
    num: int
    length: int
    prefix: int
    index: Tensor | None  # as in Block
    # [num * (prefix + length)]: where each key and value lies; anywhere, where there is none
    keys: Tensor
    mask: Tensor  # [num, 1, length, prefix + length]: True where a query may look


@dataclass(frozen=True, slots=True)
class Tail:
    """Tokens of one sample side by side in the pack, and all they may look at: what comes before
    them, then themselves."""

    start: int
    length: int
    # [prefix + length] int64: places in the pack, or in all ranks' packs end to end under context
    # parallelism
    keys: np.ndarray

    @property
    def prefix(self) -> int:
        return len(self.keys) - self.length

    @property
    def work(self) -> int:
        return self.length * len(self.keys)


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's description of the packing; `blocks`, then `tails`, are how the local attention
    walks over it (both are empty for TransformerEngine)."""

    blocks: tuple[Block, ...] = ()
    tails: tuple[TailBlock, ...] = ()
    varlen: Varlen | None = None  # in the place of both, where there is a kernel for it
    pad: int = 0  # tokens at the end that nobody looks at; they attend to nothing
    positions: Tensor | None = None  # [t], for attention that makes its own rotary tables


def cut_tails(tails: Sequence[Tail], device: torch.device) -> tuple[TailBlock, ...]:
    """Blocks over tails packed in this order, end to end; few when they are sorted by prefix and
    length."""
    blocks, first = [], 0
    while first < len(tails):
        last, prefix, length, work = first, 0, 0, 0
        while last < len(tails):
            t = tails[last]
            wide, long = max(prefix, t.prefix), max(length, t.length)
            if work + t.work < (1 - MAX_PADDING) * (last + 1 - first) * long * (wide + long):
                break
            last, prefix, length, work = last + 1, wide, long, work + t.work
        blocks.append(_tail_block(tails[first:last], device))
        first = last
    return tuple(blocks)


def _tail_block(part: Sequence[Tail], device: torch.device) -> TailBlock:
    num, prefix, length = len(part), max(t.prefix for t in part), max(t.length for t in part)
    keys = torch.zeros(num, prefix + length, dtype=torch.int64)
    mask = torch.zeros(num, 1, length, prefix + length, dtype=torch.bool)
    mask[..., prefix:] = torch.ones(length, length, dtype=torch.bool).tril()
    for i, t in enumerate(part):
        places = torch.from_numpy(t.keys)
        keys[i, : t.prefix], keys[i, prefix : prefix + t.length] = (
            places[: t.prefix],
            places[t.prefix :],
        )
        mask[i, ..., : t.prefix] = True
    index = None
    if any(t.length != length for t in part):
        index = torch.cat([torch.arange(t.length) + i * length for i, t in enumerate(part)]).to(
            device
        )
    start = part[0].start
    end = part[-1].start + part[-1].length
    return TailBlock(
        start, end, num, length, prefix, index, keys.view(-1).to(device), mask.to(device)
    )


class SdpaCoreAttention(MegatronModule):
    """Causal attention of packed sequences: [t, 1, heads, dim] -> [t, 1, heads * dim] (this
    tensor-parallel rank's heads)."""

    cp_group: Any = None

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        if config.context_parallel_size > 1:
            self.cp_group = mpu.get_context_parallel_group()
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSequences | None = None,
    ) -> Tensor:
        """query: [t, 1, heads, dim]; key, value: [t, 1, kv_heads, dim]; returns [t, 1, heads *
        dim].

        Under context parallelism keys and values of all ranks are gathered first; their gradients
        are summed back."""
        if self.cp_group is not None:
            assert packed_seq_params is not None and not packed_seq_params.blocks
            both = gather_from_sequence_parallel_region(
                torch.cat([key, value], -1), group=self.cp_group
            )
            key, value = both.split([key.shape[-1], value.shape[-1]], -1)
        if packed_seq_params and packed_seq_params.varlen:
            num = len(query) - packed_seq_params.pad
            cut = packed_seq_params.varlen
            out = attend_varlen(query[:num, 0], key[:, 0], value[:, 0], cut, self.scale).flatten(1)
            return F.pad(out, (0, 0, 0, packed_seq_params.pad)).view(len(query), 1, -1)
        blocks = (
            packed_seq_params.blocks
            if packed_seq_params
            else (Block(0, len(query), 1, len(query), None),)
        )
        q, k, v = query[:, 0], key[:, 0], value[:, 0]
        parts = [
            attend_block(
                b, q[b.start : b.end], k[b.start : b.end], v[b.start : b.end], scale=self.scale
            ).flatten(1)
            for b in blocks
        ]
        if packed_seq_params:
            parts += [
                self._attend_after_prefix(b, query[b.start : b.end], key, value)
                for b in packed_seq_params.tails
            ]
            if packed_seq_params.pad:
                parts.append(
                    query.new_zeros(packed_seq_params.pad, query.shape[2] * value.shape[-1])
                )
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(len(query), 1, -1)

    def _attend_after_prefix(
        self, block: TailBlock, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        q = batched(block, query)
        k, v = (
            x[:, 0].index_select(0, block.keys).view(block.num, -1, *x.shape[-2:]).transpose(1, 2)
            for x in (key, value)
        )
        if q.shape[1] != k.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=block.mask, scale=self.scale)
        rows = out.transpose(1, 2).reshape(block.num * block.length, -1)
        return rows if block.index is None else GatherRows.apply(rows, block.index)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm with Megatron's constructor; under sequence parallelism its gradient is
    summed over the TP ranks."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None
    ) -> Any:
        """For checkpoints, where Megatron asks the module itself (a norm inside an MLP): whole on
        every tensor and data rank."""
        group = ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"]
        own = self.state_dict(prefix="", keep_vars=True)
        tensor_ranks = mpu.get_tensor_model_parallel_group()
        return make_sharded_tensors_for_checkpoint(
            own, prefix, {}, sharded_offsets, tp_group=tensor_ranks, dp_cp_group=group
        )
