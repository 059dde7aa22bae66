"""Passes without gradients need less memory than a step: their micro-batches may be several of a step's at once.

The budget is --log-probs-max-tokens-per-gpu.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.types import MicroBatch
from stages.learn.megatron import parallel
from stages.learn.megatron.packing import PackedMicroBatch
from stages.learn.megatron.passes import Passes, Prepared


class WideLogProbs:
    """Log-probs of a step's micro-batches from fewer, larger ones. Every rank calls it in the same order."""

    def __init__(self, passes: Passes, max_tokens: int, device: torch.device) -> None:
        self._passes, self._max_tokens, self._device = passes, max_tokens, device

    def __call__(self, given: Sequence[MicroBatch], packed: Sequence[PackedMicroBatch]) -> list[Tensor | None]:
        """`packed`: the same micro-batches. One [N] each, in its own order of samples; None on stages before the last."""
        runs = join(given, self._max_tokens)
        most = int(parallel.largest(len(runs), self._device))  # ranks must go through the model equally often
        runs = divide(runs, most)
        wide = [self._passes.pack_one([s for i in run for s in given[i]]) for run in runs]
        found = self._passes.log_probs_now([Prepared(mb) for mb in wide])
        out: list[Tensor | None] = []
        for run, mb, log_probs in zip(runs, wide, found, strict=True):
            if log_probs is None:
                out += [None] * len(run)
                continue
            by_place = dict(zip(mb.places, log_probs.split(mb.token_counts.tolist()), strict=True))
            start = 0
            for i in run:
                out.append(torch.cat([by_place[start + place] for place in packed[i].places]))
                start += len(given[i])
        return out


def join(micro_batches: Sequence[MicroBatch], max_tokens: int) -> list[list[int]]:
    """Runs of neighbours (by number) with at most `max_tokens` tokens together; one that is larger stays alone."""
    runs: list[list[int]] = []
    held = 0
    for i, mb in enumerate(micro_batches):
        tokens = sum(s.num_tokens for s in mb)
        if not runs or held + tokens > max_tokens:
            runs.append([])
            held = 0
        runs[-1].append(i)
        held += tokens
    return runs


def divide(runs: Sequence[list[int]], count: int) -> list[list[int]]:
    """The same in `count` runs, in the same order; there must be as many members."""
    out = list(runs)
    while len(out) < count:
        at = max(range(len(out)), key=lambda i: len(out[i]))
        half = len(out[at]) // 2
        out[at : at + 1] = [out[at][:half], out[at][half:]]
    return out
