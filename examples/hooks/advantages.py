"""Advantages of one's own: the group-normalised reward, stronger at the end of the response than at
its start.

--custom-advantage-function-path examples/hooks/advantages.py
"""

from __future__ import annotations

from typing import Any

import numpy as np


def compute_advantages(args: Any, rollout_data: dict[str, Any]) -> None:
    """`rollout_data`: lists with one entry a sample, numpy arrays where it is one number a token.

    Sets "advantages".
    """
    rollout_data["advantages"] = [
        reward * np.linspace(0.5, 1.0, length)
        for reward, length in zip(
            rollout_data["rewards"], rollout_data["response_lengths"], strict=True
        )
    ]
