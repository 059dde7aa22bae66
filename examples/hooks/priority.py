"""Replay prompts that are neither solved nor hopeless: p (1 - p) of the share p of right answers,
largest at one half.

--max-times-sampled 2 --buffer-selector prioritized --buffer-priority-path
examples/hooks/priority.py"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slipstream import Sample


def priority(args: Any, samples: Sequence[Sample]) -> float:
    right = sum(sample.get_reward_value(args) > 0 for sample in samples) / len(samples)
    return right * (1.0 - right)
