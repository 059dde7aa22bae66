"""The stage itself: groups of a rollout go in, rows for the learner come out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from configs.schema import AlgorithmConfig
from pipeline.core.types import Group, TrainSample
from stages.advantage.returns import (
    get_grpo_returns,
    get_reinforce_plus_plus_returns,
    get_token_rewards,
    whiten,
)
from stages.advantage.rewards import post_process_rewards, refuse_failed, rollout_ids
from stages.advantage.shares import number, share_trajectories
from stages.advantage.train_samples import to_train_sample
from stages.advantage.user_hooks import AdvantageHooks, users_advantages, users_rewards, users_rows

_NO_HOOKS = AdvantageHooks()


def compute_advantages(
    groups: Sequence[Group],
    config: AlgorithmConfig | None = None,
    *,
    policy_version: int,
    reward_key: str | None = None,
    max_response_len: int | None = None,
    hooks: AdvantageHooks = _NO_HOOKS,
) -> list[TrainSample]:
    """Samples as the learner takes them, groups in order; each response token carries an advantage
    (for ppo: its reward, from which the critic makes advantages; for reinforce_plus_plus with
    --kl-coef: its return, which the learner takes the KL off and whitens).

    Groups may be of any size. Samples of one rollout (equal `index`) are parts of one trajectory,
    and share its weight by their trained tokens. A sample with `remove_sample`, or without a
    trained token, takes part in its group's normalisation and comes out with a loss mask of zeros,
    as in slime: a trajectory of such samples counts where a mean is over trajectories.
    `policy_version`: the learner's now; staleness counts from it. `max_response_len`: the constant
    that dr_grpo divides token sums by (unless the loss is per token). Raises DataError for what
    must not be trained on: a FAILED sample, a reward that is no finite number, tokens newer than
    `policy_version`, lengths that contradict each other, a user's function whose answer does not
    fit."""
    config = config or AlgorithmConfig()
    rows, rewards = _rows(groups, config, policy_version, reward_key, hooks)
    advantages = _advantages(rows, rewards, config, hooks)
    constant = (
        max_response_len
        if config.advantage_estimator == "dr_grpo" and not config.calculate_per_token_loss
        else None
    )
    return [
        dataclasses.replace(
            row,
            advantages=a.astype(np.float32) if row.loss_mask.any() else row.advantages,
            norm_length=constant,
        )
        for row, a in zip(share_trajectories(rows), advantages, strict=True)
    ]


def _rows(
    groups: Sequence[Group],
    config: AlgorithmConfig,
    policy_version: int,
    reward_key: str | None,
    hooks: AdvantageHooks,
) -> tuple[list[TrainSample], np.ndarray]:
    """(rows without advantages, their post-processed rewards)."""
    samples = [s for group in groups for s in group.samples]
    if hooks.convert_samples is not None:  # it reads the rewards itself
        refuse_failed(samples)
        raw = rewards = np.zeros(len(samples))
    elif hooks.post_process_rewards is None:
        raw, rewards = post_process_rewards(groups, config, reward_key)
    else:
        raw, rewards = users_rewards(hooks.post_process_rewards, samples)
    trajectories = number(
        [
            (place, rollout)
            for place, group in enumerate(groups)
            for rollout in rollout_ids(group.samples).tolist()
        ]
    )
    rows = [
        to_train_sample(
            s,
            reward=r,
            trajectory=t,
            policy_version=policy_version,
            with_experts=config.use_rollout_routing_replay,
        )
        for s, r, t in zip(samples, raw.tolist(), trajectories, strict=True)
    ]
    return (
        (rows, rewards)
        if hooks.convert_samples is None
        else users_rows(hooks.convert_samples, samples, rows)
    )


def _advantages(
    rows: Sequence[TrainSample], rewards: np.ndarray, config: AlgorithmConfig, hooks: AdvantageHooks
) -> list[np.ndarray]:
    masks = [row.loss_mask for row in rows]
    if hooks.compute_advantages is not None:
        found = users_advantages(hooks.compute_advantages, rows, rewards)
    elif config.advantage_estimator == "ppo":
        return get_token_rewards(rewards, masks)  # whitened after the critic, in the learner
    elif config.advantage_estimator == "reinforce_plus_plus":
        found = get_reinforce_plus_plus_returns(rewards, masks, gamma=config.gamma)
    else:
        found = get_grpo_returns(rewards, [row.response_length for row in rows])
    # with a KL in the returns the learner whitens them, behind it
    whitens = config.normalize_advantages and not config.pays_kl_ahead
    return whiten(found, masks) if whitens else found
