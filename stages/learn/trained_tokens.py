"""The trained tokens of a micro-batch, listed flat, with what is known of their samples: what every
loss reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.core.errors import LearnerError
from pipeline.core.types import TrainSample


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatTrainedTokens:
    """N trained tokens of S samples, sample by sample."""

    targets: Tensor  # [N] int64: the trained tokens
    advantages: Tensor  # [N] float32
    rollout_log_probs: Tensor  # [N] float32
    token_counts: Tensor  # [S] int64: trained tokens a sample
    sample_lengths: Tensor  # [S] int64: prompt and response
    staleness: Tensor  # [S] int64, policy versions
    token_staleness: Tensor  # [N] int64, policy versions
    sample_indices: Tensor  # [S] int64: TrainSample.index
    group_indices: Tensor  # [S] int64: TrainSample.group_index
    trajectories: Tensor  # [S] int64: TrainSample.trajectory
    # [S] float32: its part of its trajectory, by trained tokens: of each they add up to 1
    shares: Tensor
    # [S] float32: what the mean over a sample's trained tokens weighs in a mean over trajectories
    mean_weights: Tensor
    num_tokens: int  # prompt and response
    teacher_log_probs: Tensor | None = None  # [N] float32, with --use-opd

    def weights_of_samples(self, *, per_token: bool) -> Tensor:
        """[S] weights that go with losses.token_weights of the same `per_token`: a mean over tokens
        counts each token once, wherever its trajectory was cut."""
        return torch.ones_like(self.mean_weights) if per_token else self.mean_weights


Tokens = TypeVar("Tokens", bound=FlatTrainedTokens)


def with_known_log_probs(batch: Tokens, old_log_probs: Tensor) -> Tokens:
    """A user's function may leave rollout log-probs out, as not a number, where nothing is
    corrected by them: then the ratio to the old policy is 1. old_log_probs: [N]."""
    given = batch.rollout_log_probs
    return dataclasses.replace(
        batch, rollout_log_probs=torch.where(given.isnan(), old_log_probs.to(given.dtype), given)
    )


def trained_fields(samples: Sequence[TrainSample], device: torch.device) -> dict[str, Any]:
    """The fields of FlatTrainedTokens.

    Raises LearnerError for a sample whose first token would have to be predicted, or whose arrays
    disagree."""
    for s in samples:
        check_sample(s)
    masks = [np.asarray(s.loss_mask, dtype=bool) for s in samples]
    counts = [int(m.sum()) for m in masks]
    means = [
        n / s.norm_length if s.norm_length else s.weight
        for s, n in zip(samples, counts, strict=True)
    ]

    def flat(parts: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        kept = [part[m] for part, m in zip(parts, masks, strict=True)]
        return torch.from_numpy(np.concatenate(kept)).to(device=device, dtype=dtype)

    def each(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return {
        "targets": flat(
            [s.tokens[s.num_tokens - s.response_length :] for s in samples], torch.int64
        ),
        "advantages": flat([s.advantages for s in samples], torch.float32),
        "rollout_log_probs": flat([s.rollout_log_probs for s in samples], torch.float32),
        "token_counts": each(counts, torch.int64),
        "sample_lengths": each([s.num_tokens for s in samples], torch.int64),
        "staleness": each([s.staleness for s in samples], torch.int64),
        "token_staleness": flat([_token_staleness(s) for s in samples], torch.int64),
        "sample_indices": each([s.index for s in samples], torch.int64),
        "group_indices": each([s.group_index for s in samples], torch.int64),
        "trajectories": each([s.trajectory for s in samples], torch.int64),
        "shares": each([s.weight for s in samples], torch.float32),
        "mean_weights": each(means, torch.float32),
        "num_tokens": sum(s.num_tokens for s in samples),
        "teacher_log_probs": _teacher(samples, masks, device),
    }


def _token_staleness(sample: TrainSample) -> np.ndarray:
    """[R]"""
    known = sample.token_staleness
    return np.full(sample.response_length, sample.staleness) if known is None else known


def _teacher(
    samples: Sequence[TrainSample], masks: Sequence[np.ndarray], device: torch.device
) -> Tensor | None:
    """[N] float32; None where no sample has a teacher's log-probs. Raises LearnerError where some
    trained ones have, and some have not."""
    if all(s.teacher_log_probs is None for s in samples):
        return None
    parts = []
    for s, mask in zip(samples, masks, strict=True):
        if s.teacher_log_probs is not None:
            parts.append(s.teacher_log_probs[mask])
        elif mask.any():
            raise LearnerError(
                f"sample {s.index} has no teacher log-probs, others of its micro-batch have: all"
                " or none are expected"
            )
    return torch.from_numpy(np.concatenate(parts)).to(device=device, dtype=torch.float32)


def check_sample(s: TrainSample) -> None:
    """Raises LearnerError for a sample whose first token would have to be predicted, or whose
    arrays disagree."""
    lengths = {len(s.loss_mask), len(s.advantages), len(s.rollout_log_probs)}
    if lengths != {s.response_length}:
        raise LearnerError(
            f"sample {s.index}: response of {s.response_length} tokens, but arrays of"
            f" {sorted(lengths)}"
        )
    if s.num_tokens < 2 or s.response_length >= s.num_tokens:
        raise LearnerError(
            f"sample {s.index}: {s.num_tokens} tokens, {s.response_length} of them response: needs"
            " a prompt token ahead"
        )
