"""Samples as the learner takes them, and checks for what must never get there."""

from __future__ import annotations

import dataclasses

import numpy as np

from pipeline.core.errors import DataError
from pipeline.core.types import Sample, TrainSample, narrow_experts


def to_train_sample(
    sample: Sample,
    *,
    reward: float,
    trajectory: int,
    policy_version: int,
    with_experts: bool = False,
) -> TrainSample:
    """The row of one sample, advantages still 0. A sample with `remove_sample`, or without a
    trained token, has a mask of zeros.

    `with_experts`: the engine's routed experts go along, to be replayed. Raises DataError for what
    contradicts itself."""
    mask = loss_mask_of(sample)
    if sample.remove_sample or not mask.any():
        return _untrained(sample, reward, trajectory)
    row = _trained(sample, mask, reward, trajectory, policy_version)
    return dataclasses.replace(row, routed_experts=_experts(sample, mask)) if with_experts else row


def loss_mask_of(sample: Sample) -> np.ndarray:
    if sample.loss_mask is None:
        return np.ones(sample.response_length, dtype=np.uint8)
    return np.asarray(sample.loss_mask, dtype=np.uint8)


def _untrained(sample: Sample, reward: float, trajectory: int) -> TrainSample:
    """Whatever the sample's arrays are: they are not looked at."""
    n = min(sample.response_length, len(sample.tokens))
    return TrainSample(
        index=sample.index if sample.index is not None else -1,
        group_index=sample.group_index if sample.group_index is not None else -1,
        tokens=np.asarray(sample.tokens, dtype=np.int64),
        response_length=n,
        loss_mask=np.zeros(n, dtype=np.uint8),
        rollout_log_probs=np.zeros(n, dtype=np.float32),
        advantages=np.zeros(n, dtype=np.float32),
        reward=reward,
        staleness=0,
        trajectory=trajectory,
    )


def _trained(
    sample: Sample, mask: np.ndarray, reward: float, trajectory: int, policy_version: int
) -> TrainSample:
    log_probs = np.asarray(
        sample.rollout_log_probs if sample.rollout_log_probs is not None else [], dtype=np.float32
    )
    n = sample.response_length
    if len(sample.tokens) < n:
        raise DataError(
            f"sample {sample.index}: {len(sample.tokens)} tokens for a response of {n}: prompt and"
            " response are expected"
        )
    for name, length in (("loss_mask", len(mask)), ("rollout_log_probs", len(log_probs))):
        if length != n:
            raise DataError(
                f"sample {sample.index}: {name} has {length} entries for a response of {n} tokens:"
                " one each is expected"
            )
    oldest = sample.oldest_version()
    if oldest is not None and oldest > policy_version:
        raise DataError(
            f"sample {sample.index}: its tokens are of version {oldest}, newer than the learner's"
            f" {policy_version}"
        )
    return TrainSample(
        index=sample.index if sample.index is not None else -1,
        group_index=sample.group_index if sample.group_index is not None else -1,
        tokens=np.asarray(sample.tokens, dtype=np.int64),
        response_length=n,
        loss_mask=mask,
        rollout_log_probs=log_probs,
        advantages=np.zeros(n, dtype=np.float32),
        reward=reward,
        staleness=policy_version - oldest if oldest is not None else 0,
        token_staleness=_token_staleness(sample, policy_version),
        trajectory=trajectory,
        multimodal=_multimodal(sample),
    )


def _token_staleness(sample: Sample, policy_version: int) -> np.ndarray | None:
    """[R]; None where no version is known. What no version covers was not sampled, and counts as
    0."""
    if not sample.weight_versions:
        return None
    out = np.zeros(sample.response_length, dtype=np.int64)
    for span in sample.weight_versions:
        out[span.start : span.end] = policy_version - span.version
    return out


def _experts(sample: Sample, mask: np.ndarray) -> np.ndarray:
    """Those of every token from which a trained one was sampled must be there."""
    needed = sample.prompt_length + int(np.flatnonzero(mask)[-1])
    experts = (
        None if sample.rollout_routed_experts is None else np.asarray(sample.rollout_routed_experts)
    )
    if experts is None or experts.ndim != 3 or not needed <= len(experts) < len(sample.tokens):
        found = "no" if experts is None else f"{experts.shape}"
        raise DataError(
            f"sample {sample.index}: {found} rollout_routed_experts for {len(sample.tokens)}"
            f" tokens; --use-rollout-routing-replay needs [{len(sample.tokens) - 1}, layers,"
            " top-k]: generate with the flag on, or take --use-routing-replay, which needs none"
        )
    return narrow_experts(experts)


def _multimodal(sample: Sample) -> dict[str, np.ndarray] | None:
    """The arrays of the sample's model inputs. Raises DataError for anything but arrays of
    numbers."""
    if not sample.multimodal_train_inputs:
        return None
    out = {
        name: np.asarray(value)
        for name, value in sample.multimodal_train_inputs.items()
        if value is not None
    }
    if wrong := [name for name, value in out.items() if value.dtype.kind not in "biuf"]:
        raise DataError(
            f"sample {sample.index}: multimodal_train_inputs[{wrong[0]!r}] is no array of numbers"
        )
    return out or None
