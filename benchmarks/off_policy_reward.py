"""The reward of `off_policy_tasks.py`'s scratchpad: the word that it ends with, right or wrong."""

from __future__ import annotations

from typing import Any

from slipstream import Sample


async def reward_func(args: Any, sample: Sample, **_: Any) -> float:
    return float(sample.response.rpartition(" ")[2] == sample.label)
