"""Micro-batches as the Hugging Face model takes them: samples packed end to end, longest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.types import TrainSample
from stages.learn.blocks import Block, cut_blocks
from stages.learn.trained import Trained, trained_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How t packed tokens fall into samples, for either attention."""

    blocks: tuple[Block, ...]  # torch SDPA
    ends: Tensor  # [S + 1] int32: where samples begin and end, for FlashAttention
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch(Trained):
    """t input tokens: of every sample all but its last."""

    tokens: Tensor  # [1, t] int64
    positions: Tensor  # [1, t] int64, from 0 in every sample
    rows: Tensor  # [N] int64: places in t whose next token is trained
    packing: Packing


def pack(samples: Sequence[TrainSample], device: torch.device) -> MicroBatch:
    """Raises LearnerError as trained_fields does."""
    order = sorted(samples, key=lambda s: -s.num_tokens)
    fields = trained_fields(order, device)
    lengths = [s.num_tokens - 1 for s in order]
    starts = np.cumsum([0, *lengths])
    # The token behind place p of a sample is p + 1: the first of a response is predicted at the prompt's last place.
    rows = [a + s.num_tokens - s.response_length - 1 + np.flatnonzero(s.loss_mask) for s, a in zip(order, starts, strict=False)]

    def flat(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device=device, dtype=torch.int64)

    return MicroBatch(
        tokens=flat([s.tokens[:-1] for s in order])[None],
        positions=flat([np.arange(n) for n in lengths])[None],
        rows=flat(rows),
        packing=Packing(
            blocks=cut_blocks(lengths, device),
            ends=torch.from_numpy(starts).to(device=device, dtype=torch.int32),
            longest=max(lengths),
        ),
        **fields,
    )
