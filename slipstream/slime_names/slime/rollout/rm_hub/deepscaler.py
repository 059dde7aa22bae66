"""DeepScaleR's rule."""

from pipeline.core.slime_names import refuse
from stages.reward.scorers import SCORERS

__getattr__ = refuse("slime.rollout.rm_hub.deepscaler")


def get_deepscaler_rule_based_reward(response: str, label: object) -> float | dict[str, object]:
    return SCORERS["deepscaler"](response, label, {})
