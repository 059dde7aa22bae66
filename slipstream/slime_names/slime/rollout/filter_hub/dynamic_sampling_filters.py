"""slime's own filters."""

from __future__ import annotations

from typing import Any

from pipeline.core.slime_names import refuse
from stages.filter import DynamicFilterOutput, filter_zero_std_groups

from ...utils.types import Sample

__getattr__ = refuse("slime.rollout.filter_hub.dynamic_sampling_filters")


def check_reward_nonzero_std(
    args: Any, samples: list[Sample], **kwargs: Any
) -> DynamicFilterOutput:
    """Drops groups whose rewards are all equal: `zero_std`."""
    return filter_zero_std_groups(args, samples)


def check_reward_nonzero_std_with_fallback(
    args: Any, samples: list[Sample], **kwargs: Any
) -> DynamicFilterOutput:
    """The same: admission is continuous here, so a rollout never lacks groups that could be kept
    for want of others."""
    return filter_zero_std_groups(args, samples)
