"""What is trained on, row by row: here responses without their last token, which an engine's length
limit may have cut off.

--custom-convert-samples-to-train-data-path examples/hooks/convert_samples.py
"""

from __future__ import annotations

from typing import Any

import numpy as np

from slipstream import Sample


def convert_samples_to_train_data(args: Any, samples: list[Sample]) -> dict[str, list[Any]]:
    rewards = np.array([sample.get_reward_value(args) for sample in samples])
    data: dict[str, list[Any]] = {
        "tokens": [list(sample.tokens) for sample in samples],
        "response_lengths": [sample.response_length for sample in samples],
        "loss_masks": [
            list(sample.loss_mask or [1] * sample.response_length) for sample in samples
        ],
        "rollout_log_probs": [list(sample.rollout_log_probs or []) for sample in samples],
        "raw_reward": rewards.tolist(),
        # they are taken as they are: no group normalisation after this
        "rewards": (rewards - rewards.mean()).tolist(),
        "sample_indices": [sample.index for sample in samples],
    }
    for sample, mask in zip(samples, data["loss_masks"], strict=True):
        if sample.status is Sample.Status.TRUNCATED and sum(mask) > 1:
            mask[-1] = 0
    return data
