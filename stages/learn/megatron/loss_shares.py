"""Passes without gradients need less memory than a step: their micro-batches may each be several of
a step's.

The budget is --log-probs-max-tokens-per-gpu. A run is a series of numbers of neighbouring
micro-batches of the step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.core.types import TrainSample
from stages.learn.megatron.packing import PackedMicroBatch


def join(num_tokens: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Runs of micro-batches with at most `max_tokens` tokens together; one that is larger stays
    alone."""
    runs: list[list[int]] = []
    held = 0
    for i, tokens in enumerate(num_tokens):
        if not runs or held + tokens > max_tokens:
            runs.append([])
            held = 0
        runs[-1].append(i)
        held += tokens
    return runs


def apart(
    samples: Sequence[Sequence[TrainSample]],
    runs: Sequence[Sequence[int]],
    wide: Sequence[PackedMicroBatch],
    found: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """What was `found` [N] of every wide micro-batch, for the step's micro-batches of `samples`, in
    their order of samples."""
    out: list[Tensor | None] = []
    for run, mb, log_probs in zip(runs, wide, found, strict=True):
        if log_probs is None:
            out += [None] * len(run)
            continue
        of = dict(zip(map(id, mb.samples), log_probs.split(mb.token_counts.tolist()), strict=True))
        out += [torch.cat([of[id(s)] for s in samples[i]]) for i in run]
    return out


def divide(runs: Sequence[list[int]], count: int) -> list[list[int]]:
    """The same micro-batches in `count` runs, in the same order; there must be as many members."""
    out = list(runs)
    while len(out) < count:
        at = max(range(len(out)), key=lambda i: len(out[i]))
        half = len(out[at]) // 2
        out[at : at + 1] = [out[at][:half], out[at][half:]]
    return out
