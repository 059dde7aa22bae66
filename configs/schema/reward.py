"""How samples are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

RmType = Literal[
    "math",
    "boxed_math",
    "deepscaler",
    "dapo",
    "exact_match",
    "boxed_exact_match",
    "f1",
    "boxed_f1",
    "gpqa",
    "boxed_gpqa",
    "ifbench",
    "reasoning_gym",
    "remote_rm",
    "random",
]
RM_TYPES: tuple[str, ...] = get_args(RmType)
# those that compare a response with its label, and can do nothing without one
COMPARING = tuple(
    name
    for name in RM_TYPES
    if name.removeprefix("boxed_") in ("math", "deepscaler", "dapo", "exact_match", "f1")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Rewards."""

    # chooses a built-in reward; by default reasoning_gym for its own prompts
    rm_type: RmType | None = None
    rm_url: str | None = None  # the server that --rm-type remote_rm asks for every score
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
