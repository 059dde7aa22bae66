"""The types that flow through the pipeline: sample, group, batch and the results of each stage.

Layer 0: standard library and numpy only. Custom user functions see `Sample`, whose field names are
slime's."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np


def narrow_experts(experts: np.ndarray) -> np.ndarray:
    """The same numbers in the smallest of uint8, int16 and int32 that holds them: they are most of
    a rollout's bytes."""
    low, high = (int(experts.min()), int(experts.max())) if experts.size else (0, 0)
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return experts.astype(dtype, copy=False)
    raise ValueError(f"experts {low} to {high}: expected 32-bit numbers")


class VersionSpan(NamedTuple):
    """Response tokens [start, end) were sampled by the weights of policy `version` (indices into
    the response)."""

    version: int
    start: int
    end: int


class Status(enum.StrEnum):
    """Where a sample is in its life."""

    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"
    FAILED = "failed"


_Status = Status  # inside Sample the name `Status` is slime's alias, which cannot annotate a field


@dataclass(slots=True, kw_only=True)
class Sample:
    """One trajectory: a prompt and everything generated and everything tools returned. Mutable, as
    in slime.

    `tokens` holds prompt and response ids, the last `response_length` of them are the response.
    `loss_mask`, `rollout_log_probs` and the version spans cover the response only: `len(loss_mask)
    == len(rollout_log_probs) == response_length`; tool tokens have mask 0, log-prob 0.0 and no
    version span.

    Samples that come out of the replay buffer hold read-only numpy arrays instead of lists in
    `tokens` (int64), `loss_mask` (uint8) and `rollout_log_probs` (float32): views of the mapped
    segment file, nothing is copied.

    `rollout_routed_experts` [n, layers, top-k] (uint8, int16 or int32): the experts that the
    engine's routers chose as token i passed through, for the n <= len(tokens) - 1 tokens that did.
    Layers without experts hold zeros."""

    Status: ClassVar[type[Status]] = Status  # slime writes Sample.Status.COMPLETED

    group_index: int | None = None
    # of the rollout, unique over the run: group_index * n_samples_per_prompt + place; fanned-out
    # samples share it
    index: int | None = None
    prompt: str | list[dict[str, Any]] = ""
    tokens: list[int] = field(default_factory=list)
    response: str = ""
    response_length: int = 0
    label: Any = None
    reward: float | dict[str, float] | None = None
    loss_mask: list[int] | None = None
    status: _Status = Status.PENDING
    metadata: dict[str, Any] = field(default_factory=dict)
    multimodal_inputs: dict[str, Any] | None = None
    multimodal_train_inputs: dict[str, Any] | None = None
    weight_versions: list[VersionSpan] = field(default_factory=list)
    rollout_log_probs: list[float] | None = None
    rollout_routed_experts: Any = None  # [n, layers, top-k], see above
    # on-policy distillation: the teacher's, of the response's tokens
    teacher_log_probs: list[float] | None = None
    remove_sample: bool = False  # keep in the group (for reward normalisation), give it no loss
    generate_function_path: str | None = None
    custom_rm_path: str | None = None
    train_metadata: dict[str, Any] | None = None
    session_id: str | None = None
    non_generation_time: float = 0.0
    spec_info: dict[str, Any] | None = None
    error: str | None = None  # why a FAILED sample failed

    @property
    def prompt_length(self) -> int:
        return len(self.tokens) - self.response_length

    @property
    def effective_response_length(self) -> int:
        """Response tokens that carry loss."""
        return (
            int(np.count_nonzero(self.loss_mask))
            if self.loss_mask is not None
            else self.response_length
        )

    def reward_value(self, key: str | None = None) -> float:
        """The scalar reward; `key` picks one entry where the reward is a dict."""
        if isinstance(self.reward, dict):
            return float(self.reward[key or "score"])
        if self.reward is None:
            raise ValueError(f"sample {self.index} has no reward yet")
        return float(self.reward)

    def get_reward_value(self, args: Any) -> float:
        """slime's spelling, for ported custom functions."""
        return self.reward_value(args.reward_key)

    def append_response_tokens(
        self,
        token_ids: Sequence[int],
        *,
        log_probs: Sequence[float] | None = None,
        spans: Sequence[VersionSpan] = (),
        trainable: bool = True,
    ) -> None:
        """Append generated tokens (with log-probs and spans counted from the first of them) or tool
        tokens (mask 0)."""
        n, at = len(token_ids), self.response_length
        if trainable and (log_probs is None or len(log_probs) != n):
            raise ValueError(
                f"{n} generated tokens need {n} log-probs, got"
                f" {None if log_probs is None else len(log_probs)}"
            )
        self.loss_mask = [
            *(self.loss_mask if self.loss_mask is not None else [1] * at),
            *[int(trainable)] * n,
        ]
        self.rollout_log_probs = [
            *(self.rollout_log_probs or [0.0] * at),
            *(log_probs if trainable and log_probs else [0.0] * n),
        ]
        for v, start, end in spans:
            last = self.weight_versions[-1] if self.weight_versions else None
            if last and last.version == v and last.end == at + start:
                self.weight_versions[-1] = VersionSpan(v, last.start, at + end)
            else:
                self.weight_versions.append(VersionSpan(v, at + start, at + end))
        self.tokens = [*self.tokens, *token_ids]
        self.response_length = at + n

    def add_routed_experts(self, experts: np.ndarray, start: int = 0) -> None:
        """Join what an answer says of tokens start, start + 1, ... (experts: [m, layers, top-k]) to
        what is known.

        What is known stays: it is of the pass that sampled the tokens from there on, while a later
        turn's answer may say how newer weights, or another engine, read them again as a prefix.
        Raises ValueError where a gap would be left."""
        have = self.rollout_routed_experts
        known = 0 if have is None else len(have)
        if start > known:
            raise ValueError(
                f"routed experts of tokens from {start} on, but none of tokens {known} to"
                f" {start - 1}"
            )
        self.rollout_routed_experts = (
            experts if have is None else np.concatenate([have, experts[known - start :]])
        )

    def oldest_version(self) -> int | None:
        """The oldest policy version among the trained tokens (None without any)."""
        if self.loss_mask is None:
            return min((s.version for s in self.weight_versions), default=None)
        return min(
            (s.version for s in self.weight_versions if any(self.loss_mask[s.start : s.end])),
            default=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data (as far as the user's metadata is)."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        out.update({k: v.tolist() for k, v in out.items() if isinstance(v, np.ndarray)})
        out["status"] = str(self.status)
        out["weight_versions"] = [list(s) for s in self.weight_versions]
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sample:
        data = dict(data)
        data["status"] = Status(data.get("status", Status.PENDING))
        data["weight_versions"] = [VersionSpan(*s) for s in data.get("weight_versions", ())]
        return cls(**data)


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
    weight: float = 1.0  # in means over samples: 1 / number of samples of the same rollout
    # divides the sum over its trained tokens instead of their number (Dr. GRPO's constant)
    norm_length: int | None = None
    # [n, layers, top-k], n <= T - 1: Sample.rollout_routed_experts, to be replayed
    routed_experts: np.ndarray | None = None
    # Sample.multimodal_train_inputs: model arguments such as pixel_values
    multimodal: Mapping[str, np.ndarray] | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def family(self) -> tuple[int, int]:
        """Samples of equal ones may share their prompt: of one group, and as long.

        Cheap; `prompt_key` is sure.
        """
        return self.group_index, self.num_tokens - self.response_length

    @property
    def prompt_key(self) -> tuple[int, bytes, bytes]:
        """Samples of equal keys share their prompt: of one group, with the very same tokens ahead
        of the response, and the same routed experts on them (equal prompts of two requests need not
        have gone the same way)."""
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
        """The same tokens, of which none is trained and none counts: for a rank that must take part
        in a step and has no sample of its own."""
        return replace(self, loss_mask=np.zeros_like(self.loss_mask), weight=0.0)


MicroBatch = tuple[TrainSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerStep:
    """One optimizer step: for every data-parallel rank its micro-batches (equally many on each
    rank)."""

    per_rank: tuple[tuple[MicroBatch, ...], ...]  # [dp_rank][micro_batch]
    # over all ranks, by weight (so: rollouts): the denominator of the per-sample mean
    num_samples: float
    num_loss_tokens: float  # over all ranks, by weight: the denominator of the per-token mean

    @property
    def is_empty(self) -> bool:
        """Nothing is trained: a zero update. No rank has a micro-batch then."""
        return not any(self.per_rank)

    @property
    def num_fillers(self) -> int:
        """Samples without a loss that ranks were given which have no other."""
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
    num_tokens, seconds; with a reference kl_ref, with replayed experts routing_mismatch, with
    auxiliary losses moe_*. A learner with a model adds peak_memory_bytes (the rank with the most),
    tokens_per_second_per_device, model_tflops (a device), and mfu on a GPU whose peak is known.
    The bins of the log-ratio's histogram are there as rollout_log_ratio_bin/0, 1, ... (in tokens).
    Those of the behaviour policy are there by staleness too, as ess_fraction/staleness_2-3 (0, 1,
    2-3, 4-7, 8+)."""

    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """One completed weight push."""

    policy_version: int
    seconds: float  # from start to the last engine's confirmation
    stall_seconds: float  # longest time one engine was paused
    num_bytes: int
    num_engines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer of an engine to one request: token ids in, token ids out."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]  # of the sampled tokens, under the sampling distribution
    spans: tuple[VersionSpan, ...]  # relative to the first of token_ids
    finish_reason: str  # "stop" | "length" | "abort"
    text: str = ""
    cached_tokens: int = 0
    # [m, layers, top-k] of the tokens of prompt and answer from `experts_start` on, but the last
    routed_experts: np.ndarray | None = None
    experts_start: int = 0


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
