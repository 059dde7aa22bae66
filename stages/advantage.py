"""From raw rewards to advantages, per group, at consumption. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.errors import DataError
from pipeline.types import Group, Sample, Status, TrainSample

STD_EPSILON = 1e-6


def grpo_advantages(rewards: np.ndarray, *, std_normalization: bool = True) -> np.ndarray:
    """[n] raw rewards of one group -> [n] advantages.

    (r - mean) / (std + 1e-6), the sample standard deviation over the group (GRPO, arXiv:2402.03300, section 4.1.2); without
    the division: Dr. GRPO, arXiv:2503.20783. A group of equal rewards has advantage 0.
    """
    if np.ptp(rewards) == 0:  # exactly: three times 0.1 has a mean that is not 0.1
        return np.zeros_like(rewards)
    centred = rewards - rewards.mean()
    if not std_normalization or len(rewards) < 2:
        return centred
    std = rewards.std(ddof=1)
    return centred / (std + STD_EPSILON)


ESTIMATORS: dict[str, Callable[..., np.ndarray]] = dict.fromkeys(("grpo", "gspo", "cispo"), grpo_advantages)


def compute_advantages(
    groups: Sequence[Group], *, estimator: str = "grpo", std_normalization: bool = True, policy_version: int, reward_key: str | None = None
) -> list[TrainSample]:
    """Samples as the learner takes them, groups in order; each response token carries its sample's advantage.

    Groups may be of any size. A sample with `remove_sample`, or without a trained token, takes part in its group's
    normalisation and comes out with a loss mask of zeros, as in slime: it counts where a mean is over samples.
    `policy_version`: the learner's now; staleness counts from it.
    Raises DataError for what must not be trained on: a FAILED sample, a reward that is no finite number, tokens newer than
    `policy_version`, lengths that contradict each other.
    """
    out: list[TrainSample] = []
    for group in groups:
        rewards = np.array([_reward(s, reward_key) for s in group.samples], dtype=np.float64)
        advantages = ESTIMATORS[estimator](rewards, std_normalization=std_normalization)
        for sample, reward, advantage in zip(group.samples, rewards, advantages, strict=True):
            mask = _loss_mask(sample)
            if sample.remove_sample or not mask.any():
                out.append(_untrained(sample, float(reward)))
            else:
                out.append(_train_sample(sample, mask, float(reward), float(advantage), policy_version))
    return out


def _untrained(sample: Sample, reward: float) -> TrainSample:
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
    )


def _reward(sample: Sample, key: str | None) -> float:
    if sample.status is Status.FAILED:
        raise DataError(f"sample {sample.index} has failed ({sample.error}): a group with a failed sample is not trained on")
    try:
        value = sample.reward_value(key)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"sample {sample.index}: reward {sample.reward!r} has no number under {key or 'score'!r}: set --reward-key"
        ) from error
    if not math.isfinite(value):
        raise DataError(f"sample {sample.index}: the reward is {value}, expected a finite number")
    return value


def _loss_mask(sample: Sample) -> np.ndarray:
    if sample.loss_mask is None:
        return np.ones(sample.response_length, dtype=np.uint8)
    return np.asarray(sample.loss_mask, dtype=np.uint8)


def _train_sample(sample: Sample, mask: np.ndarray, reward: float, advantage: float, policy_version: int) -> TrainSample:
    log_probs = np.asarray(sample.rollout_log_probs if sample.rollout_log_probs is not None else [], dtype=np.float32)
    n = sample.response_length
    if len(sample.tokens) < n:
        raise DataError(f"sample {sample.index}: {len(sample.tokens)} tokens for a response of {n}: prompt and response are expected")
    for name, length in (("loss_mask", len(mask)), ("rollout_log_probs", len(log_probs))):
        if length != n:
            raise DataError(f"sample {sample.index}: {name} has {length} entries for a response of {n} tokens: one each is expected")
    oldest = sample.oldest_version()
    if oldest is not None and oldest > policy_version:
        raise DataError(f"sample {sample.index}: its tokens are of version {oldest}, newer than the learner's {policy_version}")
    return TrainSample(
        index=sample.index if sample.index is not None else -1,
        group_index=sample.group_index if sample.group_index is not None else -1,
        tokens=np.asarray(sample.tokens, dtype=np.int64),
        response_length=n,
        loss_mask=mask,
        rollout_log_probs=log_probs,
        advantages=np.full(n, advantage, dtype=np.float32),
        reward=reward,
        staleness=policy_version - oldest if oldest is not None else 0,
    )
