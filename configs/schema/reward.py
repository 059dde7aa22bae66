"""How samples are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Rewards."""

    # chooses a built-in reward; by default reasoning_gym for its own prompts
    rm_type: Literal["math", "exact_match", "reasoning_gym", "random"] | None = None
    # rewards with your own function, file.py[:name]: f(args, sample) -> float or dict
    custom_rm_path: str | None = None
    group_rm: bool = False  # gives the reward function the whole group as a list
    reward_key: str | None = None  # names the entry that is trained on, where rewards are dicts
    # the deadline of one scoring; an answer that gets no score in time is a wrong one: 0, and
    # counted
    reward_timeout_seconds: float = 30.0
    reward_num_workers: int | None = None  # how many processes score what is bound by the CPU
    # counts a reward below it as 0 (reasoning-gym gives partial credit)
    reward_threshold: float = 0.0
