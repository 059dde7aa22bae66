"""From raw rewards to advantages, at consumption. Pure numpy."""

from stages.advantage.compute import compute_advantages
from stages.advantage.custom import AdvantageHooks, load_hooks
from stages.advantage.distill import apply_opd
from stages.advantage.offpolicy import mask_offpolicy_tokens

__all__ = ["AdvantageHooks", "apply_opd", "compute_advantages", "load_hooks", "mask_offpolicy_tokens"]
