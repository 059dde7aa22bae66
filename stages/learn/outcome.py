"""What an objective reads, what it returns, and the metrics that are made of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from configs.correction import Correction
from configs.schema import AlgorithmConfig
from stages.learn.corrections import BatchStatistics, CorrectionResult
from stages.learn.diagnostics import NUM_SUMS, off_policy_metrics, off_policy_sums
from stages.learn.losses import PolicyLoss, TokenLogProbs, compute_approx_kl

# Sums over trained tokens, in this order, ahead of those of `diagnostics`; `loss` is already
# divided by the step's denominator.
SUMS = ("loss", "count", "entropy", "kl_old_new", "ratio", "clipped", "kl_ref", "opd_kl")
# of them the second: |old / rollout - 1|, the third: |log old - log rollout|
MAXIMA = ("ratio_max", "mismatch", "logprob_abs_diff")
SFT_SUMS = ("loss", "count", "correct_probability")
NUM_POLICY_SUMS = len(SUMS) + NUM_SUMS


class TrainedTokens(Protocol):
    """What the objective reads of a micro-batch. N trained tokens, S samples."""

    @property
    def targets(self) -> Tensor: ...  # [N]
    @property
    def advantages(self) -> Tensor: ...  # [N]
    @property
    def rollout_log_probs(self) -> Tensor: ...  # [N]
    @property
    def token_counts(self) -> Tensor: ...  # [S]
    @property
    def sample_lengths(self) -> Tensor: ...  # [S], prompt and response
    @property
    def staleness(self) -> Tensor: ...  # [S], policy versions
    @property
    def token_staleness(self) -> Tensor | None: ...  # [N], where --proximal needs it
    @property
    def teacher_log_probs(self) -> Tensor | None: ...  # [N], with --use-opd

    # [S], in the mean over tokens or over trajectories
    def weights_of_samples(self, *, per_token: bool) -> Tensor: ...


class Outcome(NamedTuple):
    loss: Tensor  # this micro-batch's share of the step's loss
    sums: Tensor  # [k]
    maxima: Tensor  # [m]
    # sums of a user's function, before the denominator
    extra: dict[str, Tensor] = {}  # noqa: RUF012


class ObjectiveExtras(NamedTuple):
    """What some options need besides the micro-batch."""

    ref: Tensor | None = None  # [N] ref_log_probs
    statistics: BatchStatistics | None = None  # of the whole optimizer step
    tis_function: Callable[..., Any] | None = None  # --custom-tis-function-path
    reducer: Callable[..., Any] | None = None  # --custom-pg-loss-reducer-function-path
    args: Any = None  # what user functions get
    opd_kl_coef: float = 0.0  # --opd-kl-coef with --use-opd, else 0


def diagnose(
    loss: Tensor,
    now: TokenLogProbs,
    proximal: Tensor,
    anchor: Tensor,
    surrogate: PolicyLoss,
    corrected: CorrectionResult,
    kl_ref: Tensor | None,
    batch: TrainedTokens,
    config: AlgorithmConfig,
    correction: Correction,
) -> tuple[Tensor, Tensor]:
    """(sums [NUM_POLICY_SUMS], maxima [len(MAXIMA)])."""
    assert now.entropy is not None
    log_ratio = proximal - batch.rollout_log_probs
    ratio, truncated, applied = (
        corrected.metrics["ratio"],
        corrected.metrics["truncated"],
        corrected.weights,
    )
    if not correction.active:  # what --use-tis would do
        applied = ratio.clamp(config.tis_clip_low, config.tis_clip)
        truncated = (applied != ratio).float()
    rows = [
        torch.ones_like(log_ratio),
        now.entropy,
        compute_approx_kl(anchor, now.log_probs, "k3"),
        surrogate.ratio,
        surrogate.clipped.float(),
        torch.zeros_like(log_ratio) if kl_ref is None else kl_ref,
        # zeros without a teacher
        proximal - (proximal if batch.teacher_log_probs is None else batch.teacher_log_probs),
    ]
    off = off_policy_sums(
        log_ratio,
        ratio,
        (~corrected.mask).float(),
        truncated,
        applied,
        batch.staleness,
        batch.token_counts,
    )
    apart = (surrogate.ratio, log_ratio.expm1().abs(), log_ratio.abs())
    maxima = (
        torch.stack([x.amax() for x in apart]) if len(log_ratio) else loss.new_zeros(len(MAXIMA))
    )
    return torch.cat([loss.detach()[None], torch.stack(rows).sum(-1), off]), maxima.detach()


def policy_metrics(
    sums: Tensor, maxima: Tensor, *, with_reference: bool = False, with_teacher: bool = False
) -> dict[str, float]:
    """StepResult's metrics of one optimizer step from sums over all ranks.

    Means are over trained tokens. `opd_kl`: log old - log teacher, so k1 of KL(old || teacher); it
    is exact in expectation where the rollout policy is the old one, else over tokens of another.
    """
    values = dict(zip(SUMS, sums[: len(SUMS)].double(), strict=True))
    count = values["count"].clamp(min=1)
    return {
        "loss": float(values["loss"]),
        "entropy": float(values["entropy"] / count),
        "kl_old_new": float(values["kl_old_new"] / count),
        **({"kl_ref": float(values["kl_ref"] / count)} if with_reference else {}),
        **({"opd_kl": float(values["opd_kl"] / count)} if with_teacher else {}),
        "ratio_mean": float(values["ratio"] / count),
        "ratio_max": float(maxima[0]),
        "train_rollout_logprob_abs_diff_max": float(maxima[2]),
        "clip_fraction": float(values["clipped"] / count),
        "num_loss_tokens": float(values["count"]),
        **off_policy_metrics(sums[len(SUMS) : NUM_POLICY_SUMS]),
    }
