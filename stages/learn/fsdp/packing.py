"""Micro-batches as the Hugging Face model takes them: samples packed end to end, longest first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.core.errors import LearnerError
from pipeline.core.types import TrainSample
from stages.learn.blocks import Block, cut_blocks
from stages.learn.trained_tokens import FlatTrainedTokens, trained_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How t packed tokens fall into samples, for either attention."""

    blocks: tuple[Block, ...]  # torch SDPA
    ends: Tensor  # [S + 1] int32: where samples begin and end, for FlashAttention
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch(FlatTrainedTokens):
    """t input tokens: of every sample all but its last."""

    tokens: Tensor  # [1, t] int64
    positions: Tensor  # [1, t] int64, from 0 in every sample; [3, 1, t] for a model that sees
    rows: Tensor  # [N] int64: places in t whose next token is trained
    packing: Packing
    media: Mapping[str, Tensor]  # pixel_values ...: of all samples, end to end


def pack(
    samples: Sequence[TrainSample],
    device: torch.device,
    positions_of: Callable[[TrainSample], np.ndarray] | None = None,
) -> MicroBatch:
    """`positions_of` a sample's inputs, [3, T - 1], where the model sees.

    Raises LearnerError as trained_fields does.
    """
    order = sorted(samples, key=lambda s: -s.num_tokens)
    fields = trained_fields(order, device)
    lengths = [s.num_tokens - 1 for s in order]
    starts = np.cumsum([0, *lengths])
    # The token behind place p of a sample is p + 1: the first of a response is predicted at the
    # prompt's last place.
    rows = [
        a + s.num_tokens - s.response_length - 1 + np.flatnonzero(s.loss_mask)
        for s, a in zip(order, starts, strict=False)
    ]

    def flat(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device=device, dtype=torch.int64)

    return MicroBatch(
        tokens=flat([s.tokens[:-1] for s in order])[None],
        positions=_positions(order, positions_of).to(device),
        rows=flat(rows),
        packing=Packing(
            blocks=cut_blocks(lengths, device),
            ends=torch.from_numpy(starts).to(device=device, dtype=torch.int32),
            longest=max(lengths),
        ),
        media=_media(order, device),
        **fields,
    )


def _positions(
    order: Sequence[TrainSample], positions_of: Callable[[TrainSample], np.ndarray] | None
) -> Tensor:
    if positions_of is None:
        return torch.from_numpy(np.concatenate([np.arange(s.num_tokens - 1) for s in order]))[None]
    return torch.from_numpy(np.concatenate([positions_of(s) for s in order], axis=1))[:, None]


def _media(order: Sequence[TrainSample], device: torch.device) -> dict[str, Tensor]:
    """Raises LearnerError where samples have different sets of inputs."""
    seen = [s for s in order if s.multimodal]
    names = [set(s.multimodal or ()) for s in seen]
    if any(n != names[0] for n in names):
        raise LearnerError(
            "samples of one micro-batch have different multimodal_train_inputs:"
            f" {', '.join(sorted(map(str, names)))}"
        )
    parts = {
        name: [np.asarray((s.multimodal or {})[name]) for s in seen]
        for name in (sorted(names[0]) if names else ())
    }
    return {
        name: torch.from_numpy(np.concatenate(arrays)).to(device) for name, arrays in parts.items()
    }
