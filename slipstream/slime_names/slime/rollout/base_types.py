"""What rollout functions return."""

from pipeline.core.slime_names import refuse
from stages.generate.rollout_function import RolloutFnEvalOutput, RolloutFnTrainOutput

__all__ = ["RolloutFnEvalOutput", "RolloutFnTrainOutput"]
__getattr__ = refuse("slime.rollout.base_types")
