"""No loss for the first token of every response, whose choice a template makes.

--rollout-data-postprocess-path examples/hooks/postprocess.py
"""

from __future__ import annotations

from typing import Any


def postprocess_rollout_data(args: Any, rollout_id: int, rollout_data: dict[str, Any]) -> None:
    """`rollout_data`: lists, an entry a sample; "loss_masks" and "advantages" are read back."""
    for mask in rollout_data["loss_masks"]:
        if len(mask) > 1:  # something must be left to train on
            mask[0] = 0
