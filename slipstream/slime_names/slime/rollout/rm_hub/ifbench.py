"""Instructions followed."""

from typing import Any

from pipeline.core.slime_names import refuse
from stages.reward.scorers.ifbench import ifbench

__getattr__ = refuse("slime.rollout.rm_hub.ifbench")


def compute_ifbench_reward(
    response: str, label: Any, metadata: dict[str, Any] | None = None
) -> float:
    return ifbench(response, label, metadata or {})
