"""How much there is to learn from a group: the priority by which the selector `prioritized`
draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.core.errors import ReplayBufferError
from pipeline.core.types import Group

Priority = Callable[[Group], float]


def reward_std(group: Group, reward_key: str | None = None) -> float:
    """The standard deviation of the group's rewards that are numbers; 0 where all are equal or
    there is none. A group-relative advantage is made of it, as priorities are made of the absolute
    TD error in Schaul et al. 2016, arXiv:1511.05952, section 3.3."""
    numbers = [s.reward_number(reward_key) for s in group.samples]
    rewards = [number for number in numbers if number is not None]
    if not rewards or rewards.count(rewards[0]) == len(rewards):
        return 0.0
    return float(np.std(rewards))


def user_priority(spec: str, function: Callable[..., Any], args: Any) -> Priority:
    """--buffer-priority-path: `f(args, samples) -> priority`. The returned function raises
    ReplayBufferError unless the priority is finite and at least 0."""

    def priority(group: Group) -> float:
        value = function(args, list(group.samples))
        if not isinstance(value, int | float | np.number) or not math.isfinite(value) or value < 0:
            raise ReplayBufferError(
                f"--buffer-priority-path {spec} gave {value!r} for group {group.group_index}:"
                " expected a number >= 0"
            )
        return float(value)

    return priority
