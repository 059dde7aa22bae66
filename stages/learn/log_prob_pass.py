"""What is computed ahead of an optimizer step: log-probs at consumption and under the reference,
and statistics of the whole step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from stages.learn.corrections import BatchStatistics, batch_statistics
from stages.learn.critic import whiten_over_ranks
from stages.learn.objective import loss_weights, penalised_returns
from stages.learn.optimal_baseline import less_baselines, optimal_baselines, trajectory_parts
from stages.learn.step_objective import StepObjective


class Prepared(NamedTuple):
    """A micro-batch with what was computed ahead of its optimizer step (where this rank sees
    log-probs; else None)."""

    batch: Any  # FlatTrainedTokens, and the model's inputs
    old: Tensor | None = None  # old log-probs; None: equal to the new ones
    ref: Tensor | None = None


class ReferenceModel(Protocol):
    """The reference model: while its context lasts, its weights are in the model's place."""

    def in_place(self) -> AbstractContextManager[None]: ...


class ForwardPasses(Protocol):
    """Passes without gradients.

    Log-probs are None for each micro-batch on a rank that does not see them (`sees` is False
    there).
    """

    @property
    def sees(self) -> bool: ...
    def log_probs_now(self, micro_batches: Sequence[Prepared]) -> Sequence[Tensor | None]: ...
    def with_old(self, micro_batches: Sequence[Prepared]) -> list[Prepared]: ...
    def with_reference(self, micro_batches: Sequence[Prepared]) -> list[Prepared]: ...
    @property
    def data_group(self) -> Any:
        """The process group of the ranks that see log-probs of samples of their own; None: of this
        one alone."""

    def gather(self, value: Any) -> list[Any]:
        """Of every rank that sees log-probs of samples of its own."""


class LogProbPass:
    """Computes what steps need ahead. Every rank calls the same methods in the same order."""

    def __init__(
        self, passes: ForwardPasses, goal: StepObjective, reference: ReferenceModel | None
    ) -> None:
        self._passes, self._goal, self._reference = passes, goal, reference

    def prepare(self, steps: Sequence[Sequence[Any]]) -> list[list[Prepared]]:
        """Old log-probs under the weights at consumption, and the reference's.

        At the first optimizer step the old ones are equal to the new: only what is made ahead of it
        needs the pass for them."""
        out = [[Prepared(mb) for mb in step] for step in steps]
        if self._goal.needs_old:
            for step in out if self._goal.needs_old_at_first else out[1:]:
                step[:] = self._passes.with_old(step)
        if self._reference:
            with self._reference.in_place():
                for step in out:
                    step[:] = self._passes.with_reference(step)
        if not self._passes.sees:
            return out
        if self._goal.has_optimal_baseline:
            return self._with_baselines(out)
        returns = self._goal.config.pays_kl_ahead and not self._goal.has_critic
        return self._with_returns(out) if returns else out

    def _with_baselines(self, steps: list[list[Prepared]]) -> list[list[Prepared]]:
        """Rewards less the baselines of their groups, which may lie on any rank."""
        config = self._goal.config
        own = [
            part
            for number, step in enumerate(steps)
            for p in step
            if p.old is not None
            for part in trajectory_parts(p.batch, p.old, loss_weights(p.batch, config), number)
        ]
        every = [part for rank in self._passes.gather(own) for part in rank]
        baselines = optimal_baselines(every)
        return [
            [
                p._replace(batch=replace(p.batch, advantages=less_baselines(p.batch, baselines)))
                for p in step
            ]
            for step in steps
        ]

    def _with_returns(self, steps: list[list[Prepared]]) -> list[list[Prepared]]:
        """Returns less the KL to the reference in the place of those without, whitened over the
        whole rollout."""
        config = self._goal.config
        found = [
            penalised_returns(p.batch, p.old, p.ref, config)
            for step in steps
            for p in step
            if p.old is not None and p.ref is not None
        ]
        if config.normalize_advantages:
            found = whiten_over_ranks(found, self._passes.data_group)
        filled = iter(found)
        return [
            [p._replace(batch=replace(p.batch, advantages=next(filled))) for p in step]
            for step in steps
        ]

    def statistics(
        self, micro_batches: list[Prepared], *, first: bool
    ) -> tuple[list[Prepared], BatchStatistics | None]:
        """What a batch-wide correction must know of the step: from current log-probs, or the old
        ones (equal to them at first)."""
        goal, bypass = self._goal, self._goal.correction.ratio == "bypass"
        current = (
            self._passes.log_probs_now(micro_batches)
            if bypass or first or goal.interpolates
            else [None] * len(micro_batches)
        )
        if not self._passes.sees:
            return micro_batches, None
        if first:
            micro_batches = [
                p._replace(old=now) for p, now in zip(micro_batches, current, strict=True)
            ]
        evidence = [goal.evidence(p, now) for p, now in zip(micro_batches, current, strict=True)]
        every = [e for part in self._passes.gather(evidence) for e in part]
        return micro_batches, batch_statistics(goal.correction, every)
