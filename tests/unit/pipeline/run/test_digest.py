"""A batch's fingerprint changes with everything that is trained on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from pipeline.core.types import TrainSample
from pipeline.run.digest import batch_digest
from stages.batch import make_batch


def sample(index: int = 0, **other: Any) -> TrainSample:
    values: dict[str, Any] = {
        "index": index,
        "group_index": 0,
        "tokens": np.arange(5),
        "response_length": 3,
        "loss_mask": np.array([1, 0, 1], np.uint8),
        "rollout_log_probs": np.array([-1.0, -2.0, -3.0], np.float32),
        "advantages": np.array([0.5, 0.25, 0.0], np.float32),
        "reward": 1.0,
        "staleness": 1,
    }
    return TrainSample(**{**values, **other})


def digest(*samples: TrainSample) -> str:
    return batch_digest(
        make_batch(samples, rollout_id=0, policy_version=0, num_dp_ranks=1, max_tokens=64)
    )


CHANGES: dict[str, Any] = {
    "index": 7,
    "group_index": 1,
    "tokens": np.array([0, 1, 2, 4, 3]),
    "loss_mask": np.array([1, 1, 0], np.uint8),
    "rollout_log_probs": np.array([-1.0, -3.0, -2.0], np.float32),
    "advantages": np.array([0.25, 0.5, 0.0], np.float32),
    "reward": 2.0,
    "staleness": 2,
    "norm_length": 9,
    "token_staleness": np.array([2, 1, 1]),
    "teacher_log_probs": np.array([-1.0, -0.5, -2.0], np.float32),
    "routed_experts": np.zeros((4, 1, 2), np.int16),
    "multimodal": {"pixel_values": np.ones((4, 3), np.float32)},
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_counts(name: str) -> None:
    assert digest(sample()) == digest(sample()) != digest(sample(**{name: CHANGES[name]}))


def test_who_has_which_weight_counts() -> None:
    one, other = sample(0, weight=0.25), sample(1, weight=0.75)
    assert digest(one, other) != digest(
        dataclasses.replace(one, weight=0.75), dataclasses.replace(other, weight=0.25)
    )


def test_who_is_part_of_whom_counts() -> None:
    """A trajectory's own number does not: a step numbers its trajectories anew."""
    one, other = sample(0, trajectory=3), sample(1, trajectory=4)
    together = dataclasses.replace(other, trajectory=3)
    assert digest(one, other) != digest(one, together)
    assert digest(one) == digest(dataclasses.replace(one, trajectory=9))


def test_all_fields_are_tried() -> None:
    assert {f.name for f in dataclasses.fields(TrainSample)} == CHANGES.keys() | {
        "weight",
        "trajectory",
        "response_length",
    }
