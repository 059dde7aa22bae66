"""What the flags ask of one optimizer step: which log-probs it needs ahead, its loss, and its
metrics.

It also holds the user's functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from configs.correction import Weight
from configs.corrections import asks_for_log_probs, correction_of
from configs.hooks import load_hook
from configs.schema import AlgorithmConfig, flat_args
from pipeline.core.batch_share import StepShare
from stages.learn.corrections import BatchStatistics, Evidence, batch_evidence
from stages.learn.losses import TokenLogProbs
from stages.learn.objective import policy_objective, proximal_log_probs, shaped_advantages
from stages.learn.outcome import NUM_POLICY_SUMS, ObjectiveExtras, Outcome, policy_metrics
from stages.learn.settings import LearnerSettings
from stages.learn.trained_tokens import with_known_log_probs
from stages.learn.trajectories import log_weight_sums, trajectory_ess_fraction
from stages.learn.user_objective import custom_objective


class PreparedBatch(Protocol):
    """A micro-batch with what was computed ahead of the optimizer step."""

    @property
    def batch(self) -> Any: ...  # TrainedTokens, with sample_indices [S]
    @property
    def old(self) -> Tensor | None: ...  # old log-probs; None: equal to the new ones
    @property
    def ref(self) -> Tensor | None: ...


class LargestGap(NamedTuple):
    """The token whose rollout log-prob is furthest from the learner's."""

    mismatch: float = 0.0  # |old / rollout - 1|
    token: str = ""


class StepObjective:
    """The objective of a run's steps. Raises ConfigError for a user function that cannot be
    loaded."""

    def __init__(self, settings: LearnerSettings) -> None:
        self.config = settings.algorithm
        self.correction = correction_of(self.config)
        self.args = flat_args(settings.config)
        distill = settings.config.distill
        self._has_teacher = distill.use_opd
        self._opd_kl_coef = distill.opd_kl_coef if distill.use_opd else 0.0
        self._log_probs_may_be_left_out = asks_for_log_probs(self.args) is None
        self._loss_function = _load("custom_loss_function_path", self.config)
        self._tis_function = _load("custom_tis_function_path", self.config)
        self._reducer = _load("custom_pg_loss_reducer_function_path", self.config)
        self.worst = LargestGap()  # of the optimizer step in progress, in true-on-policy mode

    @property
    def needs_reference(self) -> bool:
        return self.config.use_kl_loss or self.config.kl_coef > 0

    @property
    def needs_old(self) -> bool:
        """Are old log-probs needed? Later optimizer steps of a rollout look back at the policy at
        consumption."""
        return (
            (self.correction.ratio == "decoupled" and not self.interpolates)
            or self._tis_function is not None
            or self.config.kl_coef > 0
            or self._opd_kl_coef > 0
            or self.has_optimal_baseline
            or self.config.true_on_policy_mode
        )

    @property
    def needs_old_at_first(self) -> bool:
        """The critic is given rewards less the KL to the reference, and returns less it are
        whitened, and baselines of whole groups are known, ahead of all optimizer steps."""
        return self.config.pays_kl_ahead or self.has_optimal_baseline

    @property
    def interpolates(self) -> bool:
        """Is the proximal policy made of the rollout's and the new one?"""
        return self.config.proximal == "loglinear"

    @property
    def has_optimal_baseline(self) -> bool:
        return self.config.advantage_estimator == "opob"

    @property
    def has_critic(self) -> bool:
        return self.config.advantage_estimator == "ppo"

    @property
    def has_extra_metrics(self) -> bool:
        return self._loss_function is not None or self._tis_function is not None

    @property
    def wants_logits(self) -> bool:
        """Of all trained tokens of a micro-batch, in its order; other objectives look at log-probs
        only."""
        return self._loss_function is not None

    def denominator(self, step: StepShare) -> float:
        return (
            float(
                step.num_loss_tokens if self.config.calculate_per_token_loss else step.num_samples
            )
            or 1.0
        )

    def evidence(self, prepared: PreparedBatch, current: Tensor | None) -> Evidence:
        """A micro-batch's part in the step's statistics.

        `current`: the current policy's log-probs, where they differ from the old.
        """
        old = prepared.old if prepared.old is not None else current
        batch = prepared.batch
        if self.correction.ratio == "bypass":
            numerator = current
        elif self.interpolates:
            assert current is not None
            numerator = proximal_log_probs(current, old, batch, self.config)
        else:
            numerator = old
        assert old is not None and numerator is not None
        advantages = shaped_advantages(batch, old, prepared.ref, self.config, self._opd_kl_coef)
        return batch_evidence(
            self.correction,
            numerator,
            batch.rollout_log_probs,
            advantages,
            batch.token_counts,
            batch.shares,
        )

    def outcome(
        self,
        logits: Tensor,
        now: TokenLogProbs,
        prepared: PreparedBatch,
        denominator: float,
        statistics: BatchStatistics | None,
        num_trajectories: int,
    ) -> Outcome:
        """Sums are NUM_POLICY_SUMS and, with --ess-lr-scaling, one for each of the trajectories."""
        old = prepared.old
        batch = prepared.batch
        if self._log_probs_may_be_left_out:  # else what is not a number refuses the step
            batch = with_known_log_probs(batch, now.log_probs.detach() if old is None else old)
        if self.config.true_on_policy_mode:
            self.worst = max(
                self.worst, worst_mismatch(now.log_probs.detach() if old is None else old, batch)
            )
        extras = ObjectiveExtras(
            ref=prepared.ref,
            statistics=statistics,
            tis_function=self._tis_function,
            reducer=self._reducer,
            args=self.args,
            opd_kl_coef=self._opd_kl_coef,
        )
        if self._loss_function is not None:
            found = custom_objective(
                self._loss_function, logits, now, old, batch, denominator, self.config, extras
            )
        else:
            found = policy_objective(now, old, batch, self.config, denominator, extras)
        if not self.config.ess_lr_scaling:
            return found
        new = self.correction.ratio == "bypass" or old is None
        log_ratio = (now.log_probs if new else old) - batch.rollout_log_probs
        weights = log_weight_sums(
            log_ratio, batch.token_counts, batch.trajectories, num_trajectories
        )
        return found._replace(sums=torch.cat([found.sums, weights]))

    def num_sums(self, step: StepShare) -> int:
        """How many an outcome has."""
        return NUM_POLICY_SUMS + (step.num_trajectories if self.config.ess_lr_scaling else 0)

    def metrics(self, sums: Tensor, maxima: Tensor) -> dict[str, float]:
        found = policy_metrics(
            sums, maxima, with_reference=self.needs_reference, with_teacher=self._has_teacher
        )
        ess = {"trajectory_ess_fraction": self._ess(sums)} if self.config.ess_lr_scaling else {}
        return {**found, **ess}

    def lr_scale(self, sums: Tensor) -> float:
        """sqrt(ESS fraction) of the step's trajectories with --ess-lr-scaling, else 1.

        Source: VCPO, Huang et al. 2026, arXiv:2602.17616, section 4: the square root for Adam."""
        return math.sqrt(self._ess(sums)) if self.config.ess_lr_scaling else 1.0

    def _ess(self, sums: Tensor) -> float:
        """A trajectory's weight is the product of its tokens' ratios, whatever the correction's
        level; where the correction weighs by it, within the correction's bounds."""
        weight = self.correction.weight
        if weight is None or weight.level != "sequence":
            weight = Weight()
        return trajectory_ess_fraction(sums[NUM_POLICY_SUMS:], low=weight.low, high=weight.high)

    def off_policy(self, maxima: Tensor) -> bool:
        """True-on-policy mode finds a ratio out of tolerance."""
        return (
            self.config.true_on_policy_mode
            and not float(maxima[1]) <= self.config.true_on_policy_tolerance
        )


def worst_mismatch(old_log_probs: Tensor, batch: Any) -> LargestGap:
    """The worst of a micro-batch's trained tokens, with its name. old_log_probs: [N]."""
    if not len(old_log_probs):
        return LargestGap()
    mismatch = (old_log_probs - batch.rollout_log_probs).expm1().abs()
    at = int(mismatch.nan_to_num(math.inf).argmax())
    ends = batch.token_counts.cumsum(0)
    sample = int((ends <= at).sum())
    place = at - int(ends[sample] - batch.token_counts[sample])
    token = (
        f"trained token {place} of sample {int(batch.sample_indices[sample])} (token id"
        f" {int(batch.targets[at])}): log-prob {float(batch.rollout_log_probs[at]):.6f} at the"
        f" engine, {float(old_log_probs[at]):.6f} at the learner"
    )
    return LargestGap(float(mismatch[at]), token)


def _load(field: str, config: AlgorithmConfig) -> Callable[..., Any] | None:
    spec = getattr(config, field)
    return None if spec is None else load_hook(field, spec)
