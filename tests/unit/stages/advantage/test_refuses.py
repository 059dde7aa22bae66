"""What must never be trained on is refused where rewards become advantages."""

from __future__ import annotations

import pytest

from configs.schema import AlgorithmConfig
from pipeline.core.errors import DataError
from pipeline.core.types import Group, Sample, Status, VersionSpan
from stages.advantage import compute_advantages


def sample(index: int, **changes: object) -> Sample:
    made = Sample(
        index=index, reward=float(index), tokens=[1, 2, 3], response="x", status=Status.COMPLETED
    )
    made.response_length, made.loss_mask, made.rollout_log_probs = 2, [1, 1], [-0.5, -0.5]
    made.weight_versions = [VersionSpan(3, 0, 2)]
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def group(*samples: Sample) -> list[Group]:
    return [Group(group_index=0, deadline=0, admitted_version=0, samples=samples)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"status": Status.FAILED, "error": "boom"}, "boom"),
        ({"reward": float("nan")}, "finite"),
        ({"reward": None}, "reward"),
        ({"reward": {"accuracy": 1.0}}, "--reward-key"),
        ({"weight_versions": [VersionSpan(6, 0, 2)]}, "newer"),
    ],
)
def test_refused(changes: dict[str, object], says: str) -> None:
    assert len(compute_advantages(group(sample(0), sample(1)), policy_version=5)) == 2
    with pytest.raises(DataError, match=says):
        compute_advantages(group(sample(0), sample(1, **changes)), policy_version=5)


@pytest.mark.parametrize("std_normalization", [True, False])
def test_equal_rewards_give_exactly_zero(std_normalization: bool) -> None:
    samples = [sample(i, reward=0.1) for i in range(3)]  # the mean of three 0.1 is not 0.1
    out = compute_advantages(
        group(*samples), AlgorithmConfig(grpo_std_normalization=std_normalization), policy_version=5
    )
    assert all((s.advantages == 0).all() for s in out) and len(out) == 3
