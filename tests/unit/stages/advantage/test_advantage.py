"""Advantages against a loop in float64, and what becomes of a sample on its way to the learner."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buffers.replay_buffer import ReplayBuffer
from configs.schema import AlgorithmConfig, AsyncConfig
from pipeline.core.errors import DataError
from pipeline.core.types import Group, Sample, Status, VersionSpan
from pipeline.schedule.clock import RolloutClock
from stages.advantage import compute_advantages


def reference(rewards: list[float], std_normalization: bool) -> list[float]:
    """GRPO, written as it is defined."""
    mean = math.fsum(rewards) / len(rewards)
    if not std_normalization or len(rewards) == 1:
        return [r - mean for r in rewards]
    variance = math.fsum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)
    return [(r - mean) / (math.sqrt(variance) + 1e-6) for r in rewards]


CENTRED = AlgorithmConfig(grpo_std_normalization=False)


def make_sample(reward: Any = 1.0, n: int = 3, **fields: Any) -> Sample:
    defaults: dict[str, Any] = {
        "index": 0,
        "group_index": 0,
        "tokens": list(range(2 + n)),
        "response_length": n,
        "loss_mask": [1] * n,
        "rollout_log_probs": [-0.5] * n,
        "weight_versions": [VersionSpan(3, 0, n)],
        "reward": reward,
        "status": Status.COMPLETED,
    }
    return Sample(**{**defaults, **fields})


def make_group(*samples: Sample, index: int = 0) -> Group:
    return Group(group_index=index, deadline=9, admitted_version=0, samples=samples)


@settings(max_examples=100)
@given(
    st.lists(
        st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=1, max_size=9),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_groups_of_any_size_against_the_reference(
    rewards: list[list[float]], normalize: bool
) -> None:
    groups = [
        make_group(*(make_sample(r, index=i) for i, r in enumerate(rs)), index=g)
        for g, rs in enumerate(rewards)
    ]
    out = compute_advantages(
        groups, AlgorithmConfig(grpo_std_normalization=normalize), policy_version=3
    )
    expected = [a for rs in rewards for a in reference(rs, normalize)]
    assert [s.reward for s in out] == [r for rs in rewards for r in rs]
    assert all(s.advantages.dtype == np.float32 and s.advantages.shape == (3,) for s in out)
    np.testing.assert_allclose(
        [s.advantages for s in out],
        np.repeat(np.array(expected)[:, None], 3, axis=1),
        rtol=1e-4,
        atol=1e-6,
    )


def test_a_removed_sample_counts_in_its_groups_mean_and_is_not_trained() -> None:
    samples = [
        make_sample(1.0, index=0),
        make_sample(4.0, index=1, remove_sample=True),
        make_sample(1.0, index=2),
    ]
    out = compute_advantages([make_group(*samples)], CENTRED, policy_version=3)
    assert [s.index for s in out] == [0, 1, 2]
    assert [float(s.advantages[0]) for s in out] == [-1.0, 0.0, -1.0]
    assert [bool(s.loss_mask.any()) for s in out] == [True, False, True]


def test_a_sample_without_a_trained_token_is_not_trained() -> None:
    samples = [
        make_sample(1.0, loss_mask=[0, 0, 0]),
        make_sample(0.0, n=0, loss_mask=None, index=1),
        make_sample(5.0, index=2),
    ]
    out = compute_advantages([make_group(*samples)], CENTRED, policy_version=3)
    assert [(s.index, s.advantages.tolist(), s.loss_mask.tolist()) for s in out] == [
        (0, [0.0] * 3, [0] * 3),
        (1, [], []),
        (2, [3.0] * 3, [1] * 3),
    ]


def test_reward_key_picks_the_entry() -> None:
    samples = [make_sample({"score": 0.0, "style": float(i)}, index=i) for i in range(3)]
    out = compute_advantages([make_group(*samples)], CENTRED, policy_version=3, reward_key="style")
    assert [float(s.advantages[0]) for s in out] == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"loss_mask": [1, 1]}, "sample 7: loss_mask has 2 entries for a response of 3 tokens"),
        (
            {"rollout_log_probs": [-1.0] * 4},
            "sample 7: rollout_log_probs has 4 entries for a response of 3 tokens",
        ),
        ({"rollout_log_probs": None}, "sample 7: rollout_log_probs has 0 entries"),
        ({"tokens": [1, 2]}, "sample 7: 2 tokens for a response of 3"),
    ],
)
def test_lengths_that_contradict_each_other(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        compute_advantages([make_group(make_sample(index=7, **fields))], policy_version=3)


def test_staleness_is_the_oldest_trained_tokens() -> None:
    spans = [VersionSpan(1, 0, 1), VersionSpan(4, 1, 2), VersionSpan(6, 2, 3)]
    cases = [([1, 1, 1], 6), ([0, 1, 1], 3), ([0, 0, 1], 1), (None, 6)]
    for mask, expected in cases:
        sample = make_sample(loss_mask=mask, weight_versions=spans)
        (out,) = compute_advantages([make_group(sample)], policy_version=7)
        assert out.staleness == expected
        assert (
            out.loss_mask.tolist() == ([1, 1, 1] if mask is None else mask)
            and out.loss_mask.dtype == np.uint8
        )


async def test_samples_out_of_the_buffer_give_what_samples_out_of_memory_give(
    tmp_path: Path,
) -> None:
    """The buffer's samples hold read-only arrays where others hold lists."""
    clock = RolloutClock(
        rollout_batch_size=1, async_buffer_size=0, update_weights_interval=1, num_rollout=1
    )
    buffer = ReplayBuffer(tmp_path, AsyncConfig(), clock)
    admission = await buffer.admit()
    samples = [
        make_sample(float(i), n=i + 1, index=i, weight_versions=[VersionSpan(0, 0, i + 1)])
        for i in range(3)
    ]
    samples[1].loss_mask, samples[2].loss_mask = None, [0, 1, 1]
    group = Group(
        group_index=admission.group_index,
        deadline=admission.deadline,
        admitted_version=0,
        samples=tuple(samples),
    )
    await buffer.put(group)
    taken = await buffer.take(0)
    assert isinstance(taken[0].samples[0].tokens, np.ndarray)
    for one, other in zip(
        compute_advantages(taken, policy_version=0),
        compute_advantages([group], policy_version=0),
        strict=True,
    ):
        for name in ("tokens", "loss_mask", "rollout_log_probs", "advantages"):
            a, b = getattr(one, name), getattr(other, name)
            assert a.dtype == b.dtype and a.tolist() == b.tolist(), name
        assert (one.index, one.response_length, one.reward, one.staleness) == (
            other.index,
            other.response_length,
            other.reward,
            other.staleness,
        )
    buffer.close()
