"""What is computed ahead of an optimizer step: log-probs at consumption and under the reference, statistics of the whole step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from stages.learn.corrections import BatchStatistics, batch_statistics
from stages.learn.goal import Goal


class Prepared(NamedTuple):
    """A micro-batch with what was computed ahead of its optimizer step."""

    batch: Any  # Trained, and the model's inputs
    old: Tensor | None = None  # old log-probs; None: equal to the new ones
    ref: Tensor | None = None


class Lends(Protocol):
    """The reference model: its weights are in the model's place inside."""

    def in_place(self) -> AbstractContextManager[None]: ...


class Ahead:
    """`log_probs_now`: log-probs of every micro-batch under the weights that the model has, no gradients. `gather`: a value of every
    rank. Every rank calls the same methods in the same order."""

    def __init__(
        self,
        goal: Goal,
        reference: Lends | None,
        log_probs_now: Callable[[Sequence[Prepared]], list[Tensor]],
        gather: Callable[[Any], list[Any]],
    ) -> None:
        self._goal, self._reference, self._log_probs_now, self._gather = goal, reference, log_probs_now, gather

    def prepare(self, steps: Sequence[Sequence[Any]]) -> list[list[Prepared]]:
        """Old log-probs under the weights at consumption, and the reference's.

        At the first optimizer step the old ones are equal to the new: only what is made ahead of it needs the pass for them.
        """
        out = [[Prepared(mb) for mb in step] for step in steps]
        if self._goal.needs_old:
            for step in out if self._goal.needs_old_at_first else out[1:]:
                step[:] = [p._replace(old=old) for p, old in zip(step, self._log_probs_now(step), strict=True)]
        if self._reference:
            with self._reference.in_place():
                for step in out:
                    step[:] = [p._replace(ref=ref) for p, ref in zip(step, self._log_probs_now(step), strict=True)]
        return out

    def statistics(self, micro_batches: list[Prepared], *, first: bool) -> tuple[list[Prepared], BatchStatistics | None]:
        """What a batch-wide correction must know of the step: from current log-probs, or the old ones (equal to them at first)."""
        goal, bypass = self._goal, self._goal.correction.ratio == "bypass"
        current = self._log_probs_now(micro_batches) if bypass or first else [None] * len(micro_batches)
        if first:
            micro_batches = [p._replace(old=now) for p, now in zip(micro_batches, current, strict=True)]
        evidence = [goal.evidence(p, now) for p, now in zip(micro_batches, current, strict=True)]
        every = [e for part in self._gather(evidence) for e in part]
        return micro_batches, batch_statistics(goal.correction, every)
