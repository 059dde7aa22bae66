"""What makes a group, of a configuration: the same in the driver and in a rollout worker."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

from buffers.encoded import encode_group
from buffers.priority import Priority, reward_std, user_priority
from configs.hooks import load_hook
from configs.schema import Config
from pipeline.core.deadline import Deadline
from pipeline.core.protocols import Generate, Reward
from pipeline.run.group_maker import GroupMaker
from pipeline.run.watchdog import Watchdog
from stages.filter import build_filter


def make_group_maker(
    config: Config, args: SimpleNamespace, generate: Generate, reward: Reward, *, watchdog: Watchdog
) -> GroupMaker:
    """Raises ConfigError when a user's function cannot be loaded."""
    return GroupMaker(
        generate=generate,
        reward=reward,
        keep=build_filter(config.rollout.dynamic_sampling_filter_path, args),
        encode=partial(encode_group, priority=make_priority(config, args)),
        group_max_retries=config.rollout.group_max_retries,
        deadline=Deadline(*config.rollout.episode_deadline),
        watchdog=watchdog,
        shows_dropped=config.rollout.rollout_all_samples_process_path is not None,
    )


def make_priority(config: Config, args: SimpleNamespace) -> Priority:
    spec = config.async_.buffer_priority_path
    if spec is None:
        return partial(reward_std, reward_key=config.reward.reward_key)
    return user_priority(spec, load_hook("buffer_priority_path", spec), args)
