"""From raw rewards to advantages, per group, at consumption. Pure numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.errors import DataError
from pipeline.types import Group, Sample, TrainSample

STD_EPSILON = 1e-6


def grpo_advantages(rewards: np.ndarray, *, std_normalization: bool = True) -> np.ndarray:
    """[n] raw rewards of one group -> [n] advantages.

    (r - mean) / (std + 1e-6), the sample standard deviation over the group (GRPO, arXiv:2402.03300, section 4.1.2); without
    the division: Dr. GRPO, arXiv:2503.20783. A group of equal rewards has advantage 0.
    """
    centred = rewards - rewards.mean()
    if not std_normalization or len(rewards) < 2:
        return centred
    std = rewards.std(ddof=1)
    return centred / (std + STD_EPSILON) if std > 0 else np.zeros_like(centred)


ESTIMATORS: dict[str, Callable[..., np.ndarray]] = {"grpo": grpo_advantages}


def compute_advantages(
    groups: Sequence[Group], *, estimator: str = "grpo", std_normalization: bool = True, policy_version: int, reward_key: str | None = None
) -> list[TrainSample]:
    """Samples as the learner takes them, groups in order; each response token carries its sample's advantage.

    Groups may be of any size. A sample with `remove_sample`, or without a trained token, takes part in its group's
    normalisation and is not trained on. `policy_version`: the learner's now; staleness counts from it.
    Raises DataError when lengths of a sample contradict each other.
    """
    out: list[TrainSample] = []
    for group in groups:
        rewards = np.array([s.reward_value(reward_key) for s in group.samples], dtype=np.float64)
        advantages = ESTIMATORS[estimator](rewards, std_normalization=std_normalization)
        for sample, reward, advantage in zip(group.samples, rewards, advantages, strict=True):
            mask = _loss_mask(sample)
            if not sample.remove_sample and mask.any():
                out.append(_train_sample(sample, mask, float(reward), float(advantage), policy_version))
    return out


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
