"""Raw rewards compared within their group: baselines and scales. Pure numpy, float64.

A rollout may come out as several samples (fan-out: a custom generate function that returns a list).
They carry the rollout's `index`, and are compared as one: below, w = 1 / (samples of the same
rollout), and k = sum w is the number of rollouts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from configs.schema import AlgorithmConfig
from pipeline.core.errors import DataError
from pipeline.core.types import Group, Sample, Status

STD_EPSILON = 1e-6
_SCALED = ("grpo", "gspo", "cispo", "sapo", "vespo")  # by the group's standard deviation


def rollout_ids(samples: Sequence[Sample]) -> np.ndarray:
    """[n] which rollout of the group each sample belongs to: samples of equal `index` belong
    together; one without an index is a rollout of its own."""
    found: dict[object, int] = {}
    names = [s.index if s.rollout_id is None else s.rollout_id for s in samples]
    return np.array(
        [
            found.setdefault(("none", i) if name is None else name, len(found))
            for i, name in enumerate(names)
        ],
        np.int64,
    )


def rollout_weights(ids: np.ndarray) -> np.ndarray:
    """[n] 1 / number of samples with the same id."""
    count = Counter(ids.tolist())
    return np.array([1.0 / count[i] for i in ids.tolist()])


def grpo_rewards(
    rewards: np.ndarray, ids: np.ndarray, *, std_normalization: bool = True
) -> np.ndarray:
    """[n] raw rewards of one group -> [n] (r - mean) / (std + 1e-6), over rollouts; without the
    division r - mean.

    mean = sum w r / k, std^2 = sum w (r - mean)^2 / (k - 1): where samples of a rollout have equal
    rewards, the mean and the sample standard deviation of the rollouts' rewards. A single rollout
    is not divided. A group of equal rewards is all 0. Source: GRPO, arXiv:2402.03300, section
    4.1.2; without the division Dr. GRPO, arXiv:2503.20783, section 3.2."""
    if np.ptp(rewards) == 0:  # exactly: three times 0.1 has a mean that is not 0.1
        return np.zeros_like(rewards)
    weights = rollout_weights(ids)
    num_rollouts = len(np.unique(ids))
    centred = rewards - (weights * rewards).sum() / num_rollouts
    if not std_normalization or num_rollouts < 2:
        return centred
    std = math.sqrt((weights * centred**2).sum() / (num_rollouts - 1))
    return centred / (std + STD_EPSILON)


def rloo_rewards(rewards: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """[n] raw rewards of one group -> [n] reward minus the mean of the other rollouts'; 0 where
    there is no other.

    r_i - 1/(k - 1) sum_{j != i} r_j; the reward of a rollout of several samples is their mean.
    Source: RLOO, Ahmadian et al. 2024, arXiv:2402.14740, eq. 8.
    """
    num_rollouts = len(np.unique(ids))
    if num_rollouts < 2 or np.ptp(rewards) == 0:
        return np.zeros_like(rewards)
    of_rollout = np.bincount(ids, weights=rewards) / np.bincount(ids)
    return rewards - (of_rollout.sum() - of_rollout[ids]) / (num_rollouts - 1)


def max_rl_rewards(rewards: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """[n] raw rewards of one group, none below 0 -> [n] (r - mean) / mean, over rollouts; all 0
    where the mean is.

    With rewards of 0 and 1, sum over i of r_i / mean * grad log p_i is in expectation the gradient
    of a right answer's log-likelihood, its series in 1 - p cut off at the size of the group: sum
    over k of grad pass@k / k. Less the mean it has a smaller variance; its expectation is the same
    but for groups without a right answer, which have no gradient. Source: MaxRL, Tajwar et al.
    2026, arXiv:2602.02710; prime-rl's max_rl. Raises DataError for a negative reward."""
    if (rewards < 0).any():
        raise DataError(
            f"--advantage-estimator max_rl: a reward is {rewards.min():g}; it divides by the mean"
            " of a group, and expects rewards of at least 0 (right answers 1, others 0). Shift"
            " them, or use dr_grpo"
        )
    centred = grpo_rewards(rewards, ids, std_normalization=False)
    mean = (rollout_weights(ids) * rewards).sum() / len(np.unique(ids))
    return centred / mean if mean > 0 else np.zeros_like(rewards)


def post_process_rewards(
    groups: Sequence[Group], config: AlgorithmConfig, reward_key: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """(raw rewards [S], rewards [S]) of all samples, groups in order: each group for itself,
    whatever its size.

    grpo, gspo, cispo, sapo, vespo: GRPO's, with or without the standard deviation. dr_grpo,
    reinforce_plus_plus_baseline: minus the mean of the group (REINFORCE++-baseline,
    arXiv:2501.03262, section 3.2). max_rl: that over the mean of the group. rloo: minus the mean of
    the others. reinforce_plus_plus, ppo, opob (its baseline is the learner's), and any with
    --disable-rewards-normalization: raw. Raises DataError for a FAILED sample and for what is no
    finite number."""
    raw = [
        np.array([raw_reward(s, reward_key) for s in g.samples], dtype=np.float64) for g in groups
    ]
    done = [_of_group(r, rollout_ids(g.samples), config) for g, r in zip(groups, raw, strict=True)]
    return _join(raw), _join(done)


def _of_group(rewards: np.ndarray, ids: np.ndarray, config: AlgorithmConfig) -> np.ndarray:
    name = config.advantage_estimator
    if (
        not config.rewards_normalization
        or name in ("reinforce_plus_plus", "ppo", "opob")
        or not len(rewards)
    ):
        return rewards
    if name == "rloo":
        return rloo_rewards(rewards, ids)
    if name == "max_rl":
        return max_rl_rewards(rewards, ids)
    with_std = config.grpo_std_normalization and name in _SCALED
    return grpo_rewards(rewards, ids, std_normalization=with_std)


def refuse_failed(samples: Sequence[Sample]) -> None:
    """Raises DataError where one has failed."""
    for sample in samples:
        if sample.status is Status.FAILED:
            raise DataError(
                f"sample {sample.index} has failed ({sample.error}): a group with a failed sample"
                " is not trained on"
            )


def raw_reward(sample: Sample, key: str | None) -> float:
    refuse_failed([sample])
    value = sample.reward_number(key)
    if value is None:
        raise DataError(
            f"sample {sample.index}: reward {sample.reward!r:.80} has no number under"
            f" {key or 'score'!r}: set --reward-key, or --custom-reward-post-process-path to a"
            " function that makes numbers of such rewards"
        )
    if not math.isfinite(value):
        raise DataError(f"sample {sample.index}: the reward is {value}, expected a finite number")
    return value


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)
