"""Micro-batches as the model takes them: samples packed end to end, the trained tokens listed flat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import LearnerError
from pipeline.types import TrainSample
from stages.learn.megatron.attention import PackedSequences, cut_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMicroBatch:
    """t input tokens, N trained tokens, S samples. The inputs of a sample are all but its last token."""

    tokens: Tensor  # [1, t] int64
    positions: Tensor  # [1, t] int64, from 0 in every sample
    packing: PackedSequences
    rows: Tensor  # [N] int64: places in t whose next token is trained
    targets: Tensor  # [N] int64: that next token
    advantages: Tensor  # [N] float32
    rollout_log_probs: Tensor  # [N] float32
    token_counts: Tensor  # [S] int64: trained tokens a sample
    num_tokens: int  # prompt and response, before packing

    @property
    def num_inputs(self) -> int:
        return self.tokens.shape[1]


def pack(samples: Sequence[TrainSample], device: torch.device, *, thd: bool, multiple_of: int = 1) -> PackedMicroBatch:
    """Pack samples, longest first. `thd`: mark for TransformerEngine's packed attention; else cut blocks for the local one.

    `multiple_of`: pad the tokens to such a multiple with a sequence of its own (sequence parallelism splits evenly).
    Raises LearnerError for a sample whose first token would have to be predicted, or whose arrays disagree.
    """
    order = sorted(samples, key=lambda s: -s.num_tokens)
    rows: list[np.ndarray] = []
    lengths: list[int] = []
    at = 0
    for s in order:
        _check(s)
        rows.append(np.flatnonzero(s.loss_mask) + (at + s.num_tokens - s.response_length - 1))
        lengths.append(s.num_tokens - 1)
        at += lengths[-1]
    pad = -at % multiple_of
    masks = [np.asarray(s.loss_mask, dtype=bool) for s in order]
    inputs = [s.tokens[:-1] for s in order] + ([np.zeros(pad, np.int64)] if pad else [])
    lengths += [pad] if pad else []

    def flat(parts: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device=device, dtype=dtype)

    return PackedMicroBatch(
        tokens=flat(inputs, torch.int64)[None],
        positions=flat([np.arange(n) for n in lengths], torch.int64)[None],
        packing=_packing(lengths, device, thd),
        rows=flat(rows, torch.int64),
        targets=flat([s.tokens[s.num_tokens - s.response_length :][m] for s, m in zip(order, masks, strict=True)], torch.int64),
        advantages=flat([s.advantages[m] for s, m in zip(order, masks, strict=True)], torch.float32),
        rollout_log_probs=flat([s.rollout_log_probs[m] for s, m in zip(order, masks, strict=True)], torch.float32),
        token_counts=torch.tensor([int(m.sum()) for m in masks], device=device),
        num_tokens=sum(s.num_tokens for s in order),
    )


def _check(s: TrainSample) -> None:
    lengths = {len(s.loss_mask), len(s.advantages), len(s.rollout_log_probs)}
    if lengths != {s.response_length}:
        raise LearnerError(f"sample {s.index}: response of {s.response_length} tokens, but arrays of {sorted(lengths)}")
    if s.num_tokens < 2 or s.response_length >= s.num_tokens:
        raise LearnerError(f"sample {s.index}: {s.num_tokens} tokens, {s.response_length} of them response: needs a prompt token ahead")


def _packing(lengths: list[int], device: torch.device, thd: bool) -> PackedSequences:
    top = max(lengths)
    if not thd:
        # Rounded up, so that the rotary table that Megatron caches by length is made for a few lengths only.
        top = -(-top // 64) * 64
        return PackedSequences(qkv_format="sbhd", max_seqlen_q=top, max_seqlen_kv=top, blocks=cut_blocks(lengths, device))
    cumulative = torch.from_numpy(np.cumsum([0, *lengths])).to(device=device, dtype=torch.int32)
    ends = {"cu_seqlens_q": cumulative, "cu_seqlens_kv": cumulative, "max_seqlen_q": top, "max_seqlen_kv": top}
    return PackedSequences(qkv_format="thd", **ends)
