"""A learner rank's algorithm, the same whatever holds the weights: rollouts to optimizer steps, refusals, metrics.

A backend fills in the passes, the gradients and the update. Every rank calls the same methods in the same order, each on its own
share of the batch; data parallelism only (every rank has whole samples).
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.errors import LearnerError
from pipeline.types import OptimizerStep, TrainBatch
from stages.learn import rendezvous
from stages.learn.ahead import Ahead, Lends, Prepared
from stages.learn.goal import Goal, Worst
from stages.learn.losses import TokenLogProbs
from stages.learn.objective import MAXIMA, NUM_POLICY_SUMS, SFT_SUMS, Outcome, sft_objective
from stages.learn.settings import LearnerSettings

Objective = Callable[[Tensor, TokenLogProbs, Prepared], Outcome]


class Found(NamedTuple):
    """What an optimizer step measured, over all ranks."""

    sums: Tensor
    maxima: Tensor
    extra: dict[str, float]  # of user functions
    grad_norm: float  # before clipping
    lr: float


class KeepsReference(Lends, ABC):
    """The frozen model that the KL is against."""

    @abstractmethod
    def copy_policy(self) -> None: ...


class LearnerRank(ABC):
    """Raises ConfigError for a user function that cannot be loaded."""

    device: torch.device

    def __init__(self, settings: LearnerSettings, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.settings, self._clock = settings, clock
        self._goal = Goal(settings)
        self._reference: KeepsReference | None = None  # the backend's, where goal.needs_reference

    # ---- what a backend does

    @abstractmethod
    def _pack(self, step: OptimizerStep) -> list[Any]:
        """This rank's micro-batches (Trained, and the model's inputs). Raises LearnerError when the batch is cut for other ranks."""

    @abstractmethod
    def _log_probs_now(self, micro_batches: Sequence[Prepared]) -> list[Tensor]:
        """Log-probs under the weights that the model has now, without gradients."""

    @abstractmethod
    def _run(self, micro_batches: Sequence[Prepared], objective: Objective, *, forward_only: bool = False) -> list[Outcome]:
        """Forward and backward over this rank's micro-batches. Gradients are summed over micro-batches and ranks."""

    @abstractmethod
    def _zero_grad(self) -> None: ...

    @abstractmethod
    def _grad_norm(self) -> float:
        """Of the whole gradient, the same on every rank. Not finite when any of it is not."""

    @abstractmethod
    def _update(self, grad_norm: float, lr: float) -> None:
        """Clip (`grad_norm` as found) and take the optimizer step."""

    @property
    @abstractmethod
    def _lr(self) -> float:
        """The schedule's, of the next step."""

    @abstractmethod
    def _advance_schedule(self) -> None: ...

    # ---- training

    def step(self, batch: TrainBatch) -> dict[str, float]:
        """Train on one rollout; metrics as StepResult says, the same on every rank: means over the optimizer steps.

        Raises LearnerError on every rank when a loss or gradient is not finite: that optimizer step is not applied
        (those before it, of the same rollout, are) and weights, optimizer and schedule are as they were before it.
        """
        started = self._clock()
        ahead = Ahead(self._goal, self._reference, self._log_probs_now, rendezvous.gather_over_world)
        prepared = ahead.prepare([self._pack(s) for s in batch.steps])
        results = []
        for number, (step, micro_batches) in enumerate(zip(batch.steps, prepared, strict=True), 1):
            where = f"rollout {batch.rollout_id}, optimizer step {number} of {len(batch.steps)}"
            results.append(self._policy_step(ahead, step, micro_batches, where, first=number == 1))
        interval = self.settings.algorithm.ref_update_interval
        if self._reference and interval and (batch.rollout_id + 1) % interval == 0:
            self._reference.copy_policy()
        metrics = over_steps(results)
        every = (s for step in batch.steps for rank in step.per_rank for mb in rank for s in mb)
        metrics["num_tokens"] = float(sum(s.num_tokens for s in every))
        metrics["seconds"] = self._clock() - started
        return metrics

    def sft_step(self, step: OptimizerStep, lr: float) -> dict[str, float]:
        """One supervised step (mean cross entropy over the trained tokens) at learning rate `lr`, beside the schedule.

        Metrics: loss, grad_norm, lr, token_probability (mean), num_loss_tokens. Call `reset_optimizer` before the first rollout.
        """
        denominator = float(max(1, step.num_loss_tokens))

        def goal(_logits: Tensor, now: TokenLogProbs, _prepared: Prepared) -> Outcome:
            return sft_objective(now, denominator)

        found = self._optimizer_step([Prepared(mb) for mb in self._pack(step)], goal, len(SFT_SUMS), "supervised step", lr)
        loss, count, probability = found.sums.tolist()
        return {
            "loss": loss,
            "grad_norm": found.grad_norm,
            "lr": lr,
            "token_probability": probability / max(count, 1),
            "num_loss_tokens": count,
        }

    def _policy_step(
        self, ahead: Ahead, step: OptimizerStep, micro_batches: list[Prepared], where: str, *, first: bool
    ) -> dict[str, float]:
        goal, statistics = self._goal, None
        denominator = goal.denominator(step)
        if goal.correction.needs_statistics:
            micro_batches, statistics = ahead.statistics(micro_batches, first=first)

        def loss_of(logits: Tensor, now: TokenLogProbs, prepared: Prepared) -> Outcome:
            return goal.outcome(logits, now, prepared, denominator, statistics)

        goal.worst = Worst()
        found = self._optimizer_step(micro_batches, loss_of, NUM_POLICY_SUMS, where, self._lr, goal)
        self._advance_schedule()
        extra = {k: v / denominator for k, v in found.extra.items()}
        return {**extra, **goal.metrics(found.sums, found.maxima), "grad_norm": found.grad_norm, "lr": found.lr}

    def _optimizer_step(
        self, micro_batches: Sequence[Prepared], objective: Objective, num_sums: int, where: str, lr: float, goal: Goal | None = None
    ) -> Found:
        """Forward, backward, reduce, check, clip, update. `goal`: what checks and scales a policy step."""
        self._zero_grad()
        outcomes = self._run(micro_batches, objective)
        sums = sum((o.sums for o in outcomes), start=torch.zeros(num_sums, device=self.device))
        maxima = torch.stack([o.maxima for o in outcomes]).amax(0) if outcomes else torch.zeros(len(MAXIMA), device=self.device)
        sums, maxima = rendezvous.sum_and_max(sums, maxima)
        norm = self._grad_norm()
        loss, scale = float(sums[0]), goal.lr_scale(sums) if goal else 1.0
        if rendezvous.any_rank(not all(map(math.isfinite, (norm, loss, scale))), self.device):
            self._zero_grad()
            raise LearnerError(
                f"{where}: loss {loss}, gradient norm {norm}: not finite. The step was refused, the weights are as before it. "
                "Look for non-finite rewards, advantages or log-probs in the saved batch; a lower --lr or --clip-grad may help"
            )
        if goal and goal.off_policy(maxima):
            self._zero_grad()
            raise not_on_policy(goal, where)
        extra = sum_by_name(outcomes) if goal and goal.has_extra_metrics else {}
        self._update(norm, lr * scale)
        return Found(sums, maxima, extra, norm, lr * scale)


def not_on_policy(goal: Goal, where: str) -> LearnerError:
    """The same error on every rank."""
    worst = max(Worst(*w) for w in rendezvous.gather_over_world(tuple(goal.worst)))
    return LearnerError(
        f"{where}: --true-on-policy-mode, but the ratio old/rollout is {worst.mismatch:.3g} from 1 (--true-on-policy-tolerance "
        f"{goal.config.true_on_policy_tolerance:g}) at {worst.token}. The step was refused. Engine and learner must have the same "
        "weights, dtype and kernels: see --dtype and the engines' attention flags, or drop the mode and correct instead (--use-tis)"
    )


def sum_by_name(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Sums of what a user's function reported, over micro-batches and ranks."""
    own: dict[str, float] = {}
    for outcome in outcomes:
        for name, value in outcome.extra.items():
            own[name] = own.get(name, 0.0) + float(value)
    total: dict[str, float] = {}
    for part in rendezvous.gather_over_world(own):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def over_steps(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the optimizer steps that have the metric (a staleness may occur in some only), largest ratio, sum of tokens."""
    names = dict.fromkeys(name for r in results for name in r)
    values = {name: [r[name] for r in results if name in r] for name in names}
    metrics = {name: sum(v) / len(v) for name, v in values.items()}
    return {**metrics, "ratio_max": max(values["ratio_max"]), "num_loss_tokens": sum(values["num_loss_tokens"])}
