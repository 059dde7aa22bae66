"""Dynamic sampling (DAPO): drop groups that are all right or all wrong; each is replaced by a new
one at once.

--dynamic-sampling-filter-path examples/hooks/dynamic_filter.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slipstream import DynamicFilterOutput, Sample


def keep(args: Any, samples: Sequence[Sample], **_: Any) -> DynamicFilterOutput:
    rewards = [sample.get_reward_value(args) for sample in samples]
    if min(rewards) == max(rewards):
        # reasons are counted
        return DynamicFilterOutput(keep=False, reason="too_easy" if rewards[0] > 0 else "too_hard")
    return DynamicFilterOutput(keep=True)
