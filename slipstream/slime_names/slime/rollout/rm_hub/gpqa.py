"""Multiple choice."""

from typing import Any

from pipeline.core.slime_names import refuse
from stages.reward.scorers.choices import gpqa

__getattr__ = refuse("slime.rollout.rm_hub.gpqa")


def compute_gpqa_reward(response: str, label: Any, metadata: dict[str, Any] | None = None) -> float:
    return gpqa(response, label, metadata or {})
