"""The algorithm of a learner's rank, the same whatever holds the weights: from rollouts to
optimizer steps, refusals and metrics.

A backend fills in the passes, the gradients and the update. Every rank calls the same methods in
the same order, each on its own share of the batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.core.batch_share import BatchShare, StepShare
from pipeline.core.errors import LearnerError
from stages.learn import rendezvous
from stages.learn.log_prob_pass import ForwardPasses, LogProbPass, Prepared, ReferenceModel
from stages.learn.losses import TokenLogProbs
from stages.learn.meter import StepMeter
from stages.learn.objective import sft_objective
from stages.learn.outcome import MAXIMA, SFT_SUMS, Outcome
from stages.learn.settings import LearnerSettings
from stages.learn.step_objective import LargestGap, StepObjective

LARGEST = ("ratio_max", "train_rollout_logprob_abs_diff_max")  # of metrics, over optimizer steps
NOTHING_TRAINED = {"loss": 0.0, "grad_norm": 0.0, "num_loss_tokens": 0.0}  # a zero update
Objective = Callable[[Tensor, TokenLogProbs, Prepared], Outcome]


class StepMeasurements(NamedTuple):
    """What an optimizer step measured, over all ranks."""

    sums: Tensor
    maxima: Tensor
    extra: dict[str, float]  # of user functions
    grad_norm: float  # before clipping
    lr: float


class ReferenceKeeper(ReferenceModel, Protocol):
    """The frozen model against which the KL is measured."""

    def copy_policy(self) -> None: ...


class LearnerRank(ABC):
    """One rank. A backend's constructor calls `_begin` when its model stands."""

    device: torch.device
    settings: LearnerSettings

    def _begin(
        self,
        goal: StepObjective,
        looks: ForwardPasses,
        reference: ReferenceKeeper | None,
        meter: StepMeter,
    ) -> None:
        self._goal, self._reference, self._meter = goal, reference, meter
        self._ahead = LogProbPass(looks, goal, reference)

    # ---- what a backend does

    @abstractmethod
    def _pack(self, step: StepShare) -> list[Any]:
        """This rank's micro-batches (FlatTrainedTokens, and the model's inputs).

        Raises LearnerError when there are none, or they do not fit the model.
        """

    @abstractmethod
    def _run(
        self, micro_batches: Sequence[Prepared], objective: Objective, *, forward_only: bool = False
    ) -> list[Outcome]:
        """Forward and backward over this rank's micro-batches; an outcome of each, or nothing where
        this rank sees no log-probs. Gradients are summed over micro-batches and ranks."""

    @abstractmethod
    def _zero_grad(self) -> None: ...

    @abstractmethod
    def _grad_norm(self) -> float:
        """The norm of the whole gradient, the same on every rank. It is not finite when any part of
        the gradient is not."""

    @abstractmethod
    def _update(self, grad_norm: float, *, lr: float | None, scale: float) -> float:
        """Clips (`grad_norm` is as measured) and takes the optimizer step, at `lr` or at the
        schedule's rate times `scale`; returns that rate."""

    @abstractmethod
    def _advance_schedule(self) -> None: ...

    @abstractmethod
    def _forget(self) -> None:
        """Drops Adam's moments and begins the schedule anew."""

    @property
    @abstractmethod
    def _tokens_passed(self) -> tuple[int, int]:
        """(tokens through passes without gradients, tokens through training passes), since the
        start."""

    # ---- what a backend may do otherwise

    def onload(self) -> None:  # noqa: B027  # there is nothing to do where nothing ever leaves
        """Brings the rank onto its device, ahead of a step."""

    def _before_step(self, rollout_id: int, step_id: int) -> None:  # noqa: B027
        """Ahead of a policy step: for whoever lets a user's function look."""

    def _reports(self) -> bool:
        """Of the ranks that share samples, is this the one that reports what was found?"""
        return True

    def _reduce(
        self, sums: Tensor | None, maxima: Tensor | None, like: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Sums and maxima over ranks. None where this rank saw nothing; `like` has the shapes."""
        return rendezvous.sum_and_max(
            *(x if x is not None else y for x, y in zip((sums, maxima), like, strict=True))
        )

    def _criticise(
        self, batch: BatchShare, prepared: list[list[Prepared]]
    ) -> tuple[list[list[Prepared]], dict[str, float], bool]:
        """(micro-batches with a critic's advantages, its metrics, does the policy learn from this
        rollout?)."""
        return prepared, {}, True

    def _own_metrics(self, num_micro_batches: int, *, taken: bool) -> dict[str, float]:
        """The backend's metrics of the policy's step that was just taken, or only looked at."""
        return {}

    # ---- training

    def step(self, batch: BatchShare) -> dict[str, float]:
        """Trains on this rank's share of one rollout. Metrics are as StepResult says, the same on
        every rank: means over the optimizer steps.

        An optimizer step in which nothing is trained changes no weight and no moment; the schedule
        goes on.

        Raises LearnerError on every rank when a loss or gradient is not finite: that optimizer step
        is not applied (those before it, of the same rollout, are), and weights, optimizer and
        schedule are as they were before it."""
        self.onload()
        self._meter.restart()
        before = self._tokens_passed
        steps = [step for step in batch.steps if not step.is_empty]
        results, critic_metrics = (
            self._train(replace(batch, steps=tuple(steps))) if steps else ([], {})
        )
        for _ in range(len(batch.steps) - len(steps)):
            self._advance_schedule()
        interval = self.settings.algorithm.ref_update_interval
        if self._reference and interval and (batch.rollout_id + 1) % interval == 0:
            self._reference.copy_policy()
        looked, trained = (
            now - then for now, then in zip(self._tokens_passed, before, strict=True)
        )
        spent = self._spent(batch, extra_passes=looked / max(trained, 1))
        return {**over_steps(results or [NOTHING_TRAINED]), **spent, **critic_metrics}

    def _spent(self, batch: BatchShare, *, extra_passes: float) -> dict[str, float]:
        """What the meter says of all ranks together."""
        # ranks that share samples all count them
        once = batch.num_ranks / rendezvous.world_size()
        own = [once * count for count in self._meter.work(batch)]
        sums, peak = rendezvous.sum_and_max(
            torch.tensor(own, dtype=torch.float64, device=self.device),
            torch.tensor([self._meter.peak_bytes], dtype=torch.float64, device=self.device),
        )
        tokens, operations = sums.tolist()
        spent = self._meter.metrics(round(tokens), operations, extra_passes=extra_passes)
        return {**spent, "peak_memory_bytes": peak.item()}

    def _train(self, batch: BatchShare) -> tuple[list[dict[str, float]], dict[str, float]]:
        """(Metrics of every optimizer step, the critic's). None of the steps is empty."""
        prepared = self._ahead.prepare([self._pack(s) for s in batch.steps])
        prepared, critic_metrics, learns = self._criticise(batch, prepared)
        results = []
        for number, (step, micro_batches) in enumerate(zip(batch.steps, prepared, strict=True), 1):
            where = f"rollout {batch.rollout_id}, optimizer step {number} of {len(batch.steps)}"
            if learns:
                self._before_step(batch.rollout_id, number - 1)
            results.append(
                self._policy_step(step, micro_batches, where, first=number == 1, taken=learns)
            )
        return results, critic_metrics

    def sft_step(self, step: StepShare, lr: float) -> dict[str, float]:
        """One supervised step (mean cross entropy over the trained tokens) at learning rate `lr`,
        beside the schedule.

        Metrics: loss, grad_norm, lr, token_probability (mean), num_loss_tokens. Call
        `reset_optimizer` before the first rollout."""
        self.onload()
        denominator = float(max(1, step.num_loss_tokens))

        def goal(_logits: Tensor, now: TokenLogProbs, _prepared: Prepared) -> Outcome:
            return sft_objective(now, denominator)

        found = self._optimizer_step(
            [Prepared(mb) for mb in self._pack(step)], goal, len(SFT_SUMS), "supervised step", lr=lr
        )
        loss, count, probability = found.sums.tolist()
        return {
            "loss": loss,
            "grad_norm": found.grad_norm,
            "lr": lr,
            "token_probability": probability / max(count, 1),
            "num_loss_tokens": count,
        }

    def reset_optimizer(self) -> None:
        """Forgets Adam's moments and starts the schedule anew: what a warm-up leaves must not shape
        the first rollouts.

        The reference, unless it has a folder of its own, becomes the policy as it is now."""
        self._forget()
        if self._reference and not self.settings.algorithm.ref_load:
            self._reference.copy_policy()

    def _policy_step(
        self,
        step: StepShare,
        micro_batches: list[Prepared],
        where: str,
        *,
        first: bool,
        taken: bool,
    ) -> dict[str, float]:
        """`taken` False (--num-critic-only-steps): its metrics only, from forward passes."""
        goal, statistics = self._goal, None
        denominator, num_sums = goal.denominator(step), goal.num_sums(step)
        if goal.correction.needs_statistics:
            micro_batches, statistics = self._ahead.statistics(micro_batches, first=first)

        def loss_of(logits: Tensor, now: TokenLogProbs, prepared: Prepared) -> Outcome:
            return goal.outcome(
                logits, now, prepared, denominator, statistics, step.num_trajectories
            )

        goal.worst = LargestGap()
        if taken:
            found = self._optimizer_step(micro_batches, loss_of, num_sums, where, goal)
            self._advance_schedule()
        else:
            found = self._look(micro_batches, loss_of, num_sums, where)
        extra = {k: v / denominator for k, v in found.extra.items()}
        measured = {"grad_norm": found.grad_norm, "lr": found.lr}
        return {
            **extra,
            **self._own_metrics(len(micro_batches), taken=taken),
            **goal.metrics(found.sums, found.maxima),
            **measured,
        }

    def _look(
        self, micro_batches: Sequence[Prepared], objective: Objective, num_sums: int, where: str
    ) -> StepMeasurements:
        """What a policy step that is not taken measures."""
        with torch.no_grad():
            outcomes = self._run(micro_batches, objective, forward_only=True)
        sums, maxima = self._reduced(outcomes, num_sums)
        if self._goal.off_policy(maxima):
            raise self._not_on_policy(self._goal, where)
        return StepMeasurements(
            sums,
            maxima,
            self._sum_by_name(outcomes) if self._goal.has_extra_metrics else {},
            0.0,
            0.0,
        )

    def _optimizer_step(
        self,
        micro_batches: Sequence[Prepared],
        objective: Objective,
        num_sums: int,
        where: str,
        goal: StepObjective | None = None,
        lr: float | None = None,
    ) -> StepMeasurements:
        """Goes forward and backward, reduces, checks, clips and updates.

        `goal`: checks and scales a policy step."""
        self._zero_grad()
        outcomes = self._run(micro_batches, objective)
        sums, maxima = self._reduced(outcomes, num_sums)
        norm = self._grad_norm()
        loss, scale = float(sums[0]), goal.lr_scale(sums) if goal else 1.0
        if rendezvous.any_rank(not all(map(math.isfinite, (norm, loss, scale))), self.device):
            self._zero_grad()
            raise LearnerError(
                f"{where}: loss {loss}, gradient norm {norm}: not finite. The step was refused, the"
                " weights are as before it. Look for non-finite rewards, advantages or log-probs"
                " in the saved batch; a lower --lr or --clip-grad may help"
            )
        if goal and goal.off_policy(maxima):
            self._zero_grad()
            raise self._not_on_policy(goal, where)
        extra = self._sum_by_name(outcomes) if goal and goal.has_extra_metrics else {}
        return StepMeasurements(sums, maxima, extra, norm, self._update(norm, lr=lr, scale=scale))

    def _reduced(self, outcomes: Sequence[Outcome], num_sums: int) -> tuple[Tensor, Tensor]:
        """(sums, maxima) over micro-batches and ranks."""
        sums = (
            sum((o.sums for o in outcomes), start=torch.zeros(num_sums, device=self.device))
            if outcomes
            else None
        )
        maxima = torch.stack([o.maxima for o in outcomes]).amax(0) if outcomes else None
        return self._reduce(
            sums,
            maxima,
            (
                torch.zeros(num_sums, device=self.device),
                torch.zeros(len(MAXIMA), device=self.device),
            ),
        )

    def _not_on_policy(self, goal: StepObjective, where: str) -> LearnerError:
        """The error to raise, the same on every rank."""
        worst = max(
            LargestGap(*w)
            for w in rendezvous.gather_over_world(
                tuple(goal.worst) if self._reports() else (0.0, "")
            )
        )
        return LearnerError(
            f"{where}: --true-on-policy-mode, but the ratio old/rollout is {worst.mismatch:.3g}"
            f" from 1 (--true-on-policy-tolerance {goal.config.true_on_policy_tolerance:g}) at"
            f" {worst.token}. The step was refused. Engine and learner must have the same weights,"
            " dtype and kernels: see --dtype and the engines' attention flags, or drop the mode"
            " and correct instead (--use-tis)"
        )

    def _sum_by_name(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """The sums of what a user's function reported, over micro-batches and ranks."""
        own: dict[str, float] = {}
        for outcome in outcomes if self._reports() else ():
            for name, value in outcome.extra.items():
                own[name] = own.get(name, 0.0) + float(value)
        total: dict[str, float] = {}
        for part in rendezvous.gather_over_world(own):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total


def over_steps(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """The metrics of a rollout: means over the optimizer steps that have the metric (a staleness
    may occur in some only), the largest ratio, and the sum of tokens."""
    names = dict.fromkeys(name for r in results for name in r)
    values = {name: [r[name] for r in results if name in r] for name in names}
    metrics = {name: sum(v) / len(v) for name, v in values.items()}
    metrics.update({name: max(v) for name, v in values.items() if name in LARGEST})
    return {**metrics, "num_loss_tokens": sum(values["num_loss_tokens"])}
