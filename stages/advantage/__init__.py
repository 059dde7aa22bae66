"""From raw rewards to advantages, when a rollout is consumed. Pure numpy."""

from stages.advantage.compute import compute_advantages
from stages.advantage.distill import with_teacher
from stages.advantage.offpolicy import mask_offpolicy_tokens
from stages.advantage.user_hooks import AdvantageHooks, load_hooks

__all__ = [
    "AdvantageHooks",
    "compute_advantages",
    "load_hooks",
    "mask_offpolicy_tokens",
    "with_teacher",
]
