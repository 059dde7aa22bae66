"""Rewards compared by rank instead of size, so that one huge reward does not drown its group.

--custom-reward-post-process-path examples/hooks/reward_post_process.py
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from slipstream import Sample


def post_process_rewards(args: Any, samples: list[Sample]) -> tuple[list[float], list[float]]:
    """(raw rewards, for the metrics; rewards, for the estimator), one a sample, in the order
    given."""
    raw = [sample.get_reward_value(args) for sample in samples]
    groups: dict[Any, list[float]] = defaultdict(list)
    for sample, reward in zip(samples, raw, strict=True):
        groups[sample.group_index].append(reward)

    def rank(sample: Sample, reward: float) -> float:
        """From -1 (all others are better) to 1 (all others are worse)."""
        group = groups[sample.group_index]
        better, worse = sum(r > reward for r in group), sum(r < reward for r in group)
        return (worse - better) / max(len(group) - 1, 1)

    return raw, [rank(sample, reward) for sample, reward in zip(samples, raw, strict=True)]
