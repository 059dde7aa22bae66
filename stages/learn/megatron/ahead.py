"""What is computed ahead of an optimizer step: log-probs at consumption and under the reference, statistics of the whole step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pipeline.types import MicroBatch
from stages.learn.corrections import BatchStatistics, batch_statistics
from stages.learn.goal import Goal
from stages.learn.megatron import parallel
from stages.learn.megatron.packing import PackedMicroBatch
from stages.learn.megatron.passes import Passes, Prepared
from stages.learn.megatron.reference import Reference
from stages.learn.megatron.wide import WideLogProbs


class Ahead:
    """Every rank calls the same methods in the same order."""

    def __init__(self, passes: Passes, goal: Goal, reference: Reference | None, wide: WideLogProbs | None = None) -> None:
        self._passes, self._goal, self._reference, self._wide = passes, goal, reference, wide

    def prepare(self, steps: Sequence[Sequence[PackedMicroBatch]], given: Sequence[Sequence[MicroBatch]]) -> list[list[Prepared]]:
        """Old log-probs under the weights at consumption, and the reference's. `given`: what this rank's steps were packed of.

        At the first optimizer step the old ones are equal to the new: only what is made ahead of it needs the pass for them.
        """
        out = [[Prepared(mb) for mb in step] for step in steps]
        if self._goal.needs_old:
            first = 0 if self._goal.needs_old_at_first else 1
            for step, micro_batches in zip(out[first:], given[first:], strict=True):
                step[:] = [p._replace(old=old) for p, old in zip(step, self._log_probs(step, micro_batches), strict=True)]
        if self._reference:
            with self._reference.in_place():
                for step, micro_batches in zip(out, given, strict=True):
                    step[:] = [p._replace(ref=ref) for p, ref in zip(step, self._log_probs(step, micro_batches), strict=True)]
        return out

    def _log_probs(self, step: Sequence[Prepared], given: Sequence[MicroBatch]) -> list[Tensor | None]:
        return self._wide(given, [p.batch for p in step]) if self._wide is not None else self._passes.log_probs_now(step)

    def statistics(self, micro_batches: list[Prepared], *, first: bool) -> tuple[list[Prepared], BatchStatistics | None]:
        """What a batch-wide correction must know of the step: from current log-probs, or the old ones (equal to them at first)."""
        goal, bypass = self._goal, self._goal.correction.ratio == "bypass"
        current = self._passes.log_probs_now(micro_batches) if bypass or first else [None] * len(micro_batches)
        if not parallel.is_last_stage():
            return micro_batches, None
        if first:
            micro_batches = [p._replace(old=now) for p, now in zip(micro_batches, current, strict=True)]
        evidence = [goal.evidence(p, now) for p, now in zip(micro_batches, current, strict=True)]
        every = [e for part in parallel.gather_over_data_ranks(evidence) for e in part]
        return micro_batches, batch_statistics(goal.correction, every)
