"""The types that flow through the pipeline: sample, group, batch and the results of each stage.

Layer 0: standard library and numpy only. Custom user functions see `Sample`, whose field names are
slime's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.core.meta_info import Status as Status
from pipeline.core.meta_info import VersionSpan as VersionSpan
from pipeline.core.meta_info import narrow_experts as narrow_experts
from pipeline.core.sample import Sample as Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The samples of one prompt: the unit of admission, reward normalisation and buffering.

    A custom generate function may fan out, so `samples` need not be `n_samples_per_prompt` long.
    """

    group_index: int  # unique over the run, in admission order
    deadline: int  # the rollout by which it must be consumed (pipeline.schedule.clock)
    admitted_version: int  # policy version at admission
    samples: tuple[Sample, ...]
    # complete before a crash: versions that were lost in it count, so it may be beyond the bound
    recalled: bool = False
    times_sampled: int = 1  # rollouts that have taken it out of the buffer, this one included
    # out of the buffer: of this choice, given those before it in the rollout (1: not random)
    probability: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSample:
    """What the learner sees of one sample.

    All arrays numpy; R = response_length, T = total length.
    """

    index: int
    group_index: int
    tokens: np.ndarray  # [T] int64
    response_length: int
    loss_mask: np.ndarray  # [R] uint8
    rollout_log_probs: np.ndarray  # [R] float32
    # [R] float32; with ppo the token rewards, from which the critic makes them
    advantages: np.ndarray
    reward: float
    staleness: int  # max over trained tokens, in policy versions
    # [R] int64, of every response token; None: all are as stale as the sample
    token_staleness: np.ndarray | None = None
    # samples with the same one are parts of one trajectory (fan-out), wherever it was cut; -1: the
    # sample is all of its own. Unique over the rollout; in an OptimizerStep from 0 on
    trajectory: int = -1
    # its part of its trajectory in means over those, by trained tokens: of each they add up to 1
    weight: float = 1.0
    # divides the sum over its trained tokens instead of their number (Dr. GRPO's constant)
    norm_length: int | None = None
    # [n, layers, top-k], n <= T - 1: Sample.rollout_routed_experts, to be replayed
    routed_experts: np.ndarray | None = None
    # [R] float32, with --use-opd: the teacher's log-probs of the response
    teacher_log_probs: np.ndarray | None = None
    # Sample.multimodal_train_inputs: model arguments such as pixel_values
    multimodal: Mapping[str, np.ndarray] | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def family(self) -> tuple[int, int]:
        """Samples with equal families may share their prompt: they are of one group, and their
        prompts are equally long.

        This is cheap; `prompt_key` is certain."""
        return self.group_index, self.num_tokens - self.response_length

    @property
    def prompt_key(self) -> tuple[int, bytes, bytes]:
        """Samples with equal keys share their prompt: they are of one group and have the very same
        tokens ahead of the response, with the same routed experts (equal prompts of two requests
        need not have gone the same way)."""
        length = self.num_tokens - self.response_length
        route = (
            b""
            if self.routed_experts is None
            else self.routed_experts[:length].astype(np.int16).tobytes()
        )
        return (
            self.group_index,
            np.ascontiguousarray(self.tokens[:length], dtype=np.int64).tobytes(),
            route,
        )

    def without_loss(self) -> TrainSample:
        """The same tokens, none of which is trained or counted: for a rank that must take part in a
        step and has no sample of its own."""
        return replace(self, loss_mask=np.zeros_like(self.loss_mask), weight=0.0)


MicroBatch = tuple[TrainSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerStep:
    """One optimizer step: the micro-batches of every data-parallel rank, equally many on each."""

    per_rank: tuple[tuple[MicroBatch, ...], ...]  # [dp_rank][micro_batch]
    # over all ranks, by weight (so: trajectories): the denominator of the per-sample mean
    num_samples: float
    num_loss_tokens: int  # over all ranks: the denominator of the per-token mean

    @property
    def is_empty(self) -> bool:
        """Is nothing trained, so that the update is zero? Then no rank has a micro-batch."""
        return not any(self.per_rank)

    @property
    def num_trajectories(self) -> int:
        """How many have a trained token: they are numbered from 0 in every step."""
        return 1 + max(
            (s.trajectory for rank in self.per_rank for mb in rank for s in mb), default=-1
        )

    @property
    def num_fillers(self) -> int:
        """How many samples without a loss were given to ranks that have no other."""
        return sum(not s.loss_mask.any() for rank in self.per_rank for mb in rank for s in mb)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """One rollout, cut into optimizer steps."""

    rollout_id: int
    policy_version: int  # the learner's version at consumption
    steps: tuple[OptimizerStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What the learner says of one rollout: scalars, means over its optimizer steps.

    Always there: loss, grad_norm, lr, entropy, kl_rollout_old, kl_rollout_old_k1, kl_old_new,
    ratio_mean, ratio_max, clip_fraction, masked_fraction, tis_mean, tis_clip_fraction,
    ess_fraction, rollout_ratio_p01, _p50, _p99, train_rollout_logprob_abs_diff (mean) and _max,
    num_tokens, seconds; with a reference kl_ref, with a teacher opd_kl, with replayed experts
    routing_mismatch, with auxiliary losses moe_*. A learner with a model adds peak_memory_bytes
    (the rank with the most),
    tokens_per_second_per_device, model_tflops (a device), and mfu on a GPU whose peak is known.
    The bins of the log-ratio's histogram are there as rollout_log_ratio_bin/0, 1, ... (in tokens).
    Those of the behaviour policy are there by staleness too, as ess_fraction/staleness_2-3 (0, 1,
    2-3, 4-7, 8+)."""

    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedWeights:
    """What the learner's ranks send in a push."""

    # sender (a rank) -> bucket -> (name, dtype, shape) of its tensors; every name occurs once
    buckets: Mapping[int, Sequence[Sequence[tuple[str, str, list[int]]]]]
    # are they copies? Else the weights have to stay as they are until they are sent
    copied: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """One completed weight push."""

    policy_version: int
    seconds: float  # from start to the last engine's confirmation
    stall_seconds: float  # longest time one engine was paused
    num_bytes: int
    num_engines: int
    # how long the learner's loop stood still for it: until the push before was through, for
    # staging, and without --overlap-push for all of it
    trainer_seconds: float = 0.0
    # by --weight-transport delta: how many nodes' copies of the weights were given all of them
    num_full: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedDelta:
    """What the learner wrote down for a push by delta: the way from one state of the weights to the
    next. A state is known by a fingerprint of its bits."""

    base: str | None  # None: there was none before, and all weights are there
    reached: str
    num_bytes: int  # of what is written
    full_bytes: int  # of the weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer of an engine to one request: token ids in, token ids out."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]  # of the sampled tokens, under the sampling distribution
    spans: tuple[VersionSpan, ...]  # relative to the first of token_ids
    finish_reason: str  # "stop" | "length" | "abort"
    matched: int | str | None = None  # the token id or the text at which it stopped
    text: str = ""
    cached_tokens: int = 0
    # [m, layers, top-k] of the tokens of prompt and answer from `experts_start` on, but the last
    routed_experts: np.ndarray | None = None
    experts_start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean, and the bounds of its 95% confidence interval; None where one cannot be told."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One evaluation of one data set."""

    name: str
    rollout_id: int  # the rollout after which it was started
    policy_version_min: int  # oldest and newest weights among its tokens
    policy_version_max: int
    # means over the samples that did not fail; None where all did
    reward_mean: float | None
    num_samples: int
    num_failed: int
    response_length_mean: float | None
    truncated_fraction: float | None
    seconds: float
    error: str | None = None  # why nothing was measured: all samples failed, the first with this
    first_failure: str | None = None  # of a sample, where only some failed
    # of reward_mean, over prompts; None of a single prompt, and where a user's function evaluated
    reward_mean_low: float | None = None
    reward_mean_high: float | None = None
    num_prompts: int | None = None  # with a sample that did not fail
    pass_at_k: Mapping[int, Estimate] = field(default_factory=dict)  # by k


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The right of one group to generate."""

    group_index: int  # unique over the run, in admission order
    deadline: int  # the last rollout that may consume it
    policy_version: int  # that every engine had confirmed at admission
    prompt_index: int  # the ordinal of the prompt in the source; a retried prompt keeps its number


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where one batch lies."""

    segment: int
    offset: int  # of its message in the file, bytes
    num_bytes: int  # of its message, header included
