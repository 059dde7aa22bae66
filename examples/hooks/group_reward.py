"""A reward for a whole group: right answers share one point, so an answer that few found is worth
more.

--group-rm --custom-rm-path examples/hooks/group_reward.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slipstream import Sample


async def reward_func(args: Any, samples: Sequence[Sample], **_: Any) -> list[float]:
    right = [sample.response.strip() == str(sample.label) for sample in samples]
    return [1.0 / sum(right) if ok else 0.0 for ok in right]
