"""What dynamic sampling filters answer."""

from pipeline.core.slime_names import refuse
from stages.filter import DynamicFilterOutput

__all__ = ["DynamicFilterOutput"]
__getattr__ = refuse("slime.rollout.filter_hub.base_types")
