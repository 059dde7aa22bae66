"""Staleness, idle shares, and the rows of metrics.jsonl."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.types import (
    EvalResult,
    Group,
    PushResult,
    Sample,
    Status,
    StepResult,
    VersionSpan,
)
from pipeline.run.metrics import (
    BufferFill,
    Staleness,
    _rewards,
    eval_record,
    push_record,
    tokens_by_staleness,
    train_record,
)
from pipeline.run.utilisation import Lap, Utilisation, counter_total
from tests.manual_time import ManualTime
from tests.promised_fields import TRAIN_FIELDS
from tests.unit.sample_run import make_sample


@given(st.dictionaries(st.integers(0, 30), st.integers(1, 50), min_size=1))
def test_staleness_is_that_of_the_tokens_written_out(histogram: dict[int, int]) -> None:
    tokens = np.repeat(list(histogram), list(histogram.values()))
    got = Staleness.of(histogram)
    assert got.mean == pytest.approx(tokens.mean())
    assert (got.p50, got.p99) == tuple(np.quantile(tokens, [0.5, 0.99], method="inverted_cdf"))
    assert got.max == tokens.max()


def test_staleness_counts_trained_tokens_only() -> None:
    sample = Sample(tokens=[1], reward=1.0)
    sample.append_response_tokens([5] * 3, log_probs=[-1.0] * 3, spans=[VersionSpan(4, 0, 3)])
    sample.append_response_tokens([6] * 2, trainable=False)  # a tool's answer
    sample.append_response_tokens([7] * 2, log_probs=[-1.0] * 2, spans=[VersionSpan(6, 0, 2)])
    removed = make_sample(1, reward=0.0, spans=[(0, 9)])
    removed.remove_sample = True
    failed = make_sample(2, reward=0.0, spans=[(0, 9)], status=Status.FAILED)
    masked = make_sample(3, reward=0.0, spans=[(1, 2), (6, 1)])
    masked.loss_mask = [0, 0, 1]
    assert tokens_by_staleness([sample, removed, failed, masked], policy_version=6) == {2: 3, 0: 3}


def test_masks_out_of_the_buffer_do_not_wrap() -> None:
    sample = make_sample(0, reward=1.0, spans=[(1, 300), (2, 513)])
    sample.loss_mask = np.asarray(sample.loss_mask, dtype=np.uint8)  # type: ignore[assignment]
    assert tokens_by_staleness([sample], policy_version=np.int64(2)) == {1: 300, 0: 513}  # type: ignore[arg-type]


def test_staleness_of_nothing_is_zero() -> None:
    assert Staleness.of({}) == Staleness(mean=0.0, p50=0, p99=0, max=0)


def test_idle_shares_are_of_the_lap() -> None:
    time, engines = ManualTime(), {"a": 5.0, "b": 0.0}
    meter = Utilisation(time, lambda: engines)
    with meter.trainer_busy():
        time.advance(3)
    time.advance(1)
    engines.update(a=6.0, b=1.0)
    assert meter.lap() == Lap(
        seconds=4.0, trainer_idle_fraction=0.25, generation_idle_fraction=0.25
    )
    with meter.trainer_busy():
        time.advance(2)
    engines.update(a=8.0)
    assert meter.lap() == Lap(seconds=2.0, trainer_idle_fraction=0.0, generation_idle_fraction=0.5)


def test_a_step_that_spans_a_lap_counts_in_both() -> None:
    time = ManualTime()
    meter = Utilisation(time, dict)
    with meter.trainer_busy():
        time.advance(1)
        assert meter.lap().trainer_idle_fraction == 0.0
        time.advance(1)
    time.advance(1)
    assert meter.lap() == Lap(seconds=2.0, trainer_idle_fraction=0.5, generation_idle_fraction=0.0)


def test_a_restarted_engine_counts_from_zero() -> None:
    time, engines = ManualTime(), {"a": 100.0}
    meter = Utilisation(time, lambda: engines)
    time.advance(10)
    engines["a"] = 5.0
    assert meter.lap().generation_idle_fraction == 0.5


def test_counter_total_sees_restarts() -> None:
    assert counter_total([10, 25, 25, 5, 8]) == 33
    assert counter_total([]) == 0


def _groups() -> list[Group]:
    even = (
        make_sample(0, reward=1.0, spans=[(3, 4)]),
        make_sample(1, reward=1.0, spans=[(2, 2), (3, 2)]),
    )
    mixed = (
        make_sample(2, reward=0.0, spans=[(3, 8)], status=Status.TRUNCATED),
        make_sample(3, reward=1.0, spans=[(3, 4)]),
    )
    return [
        Group(group_index=i, deadline=5, admitted_version=2, samples=s)
        for i, s in enumerate((even, mixed))
    ]


def test_a_rollout_of_several_samples_is_one_reward() -> None:
    first, second = _groups()
    parts = [dataclasses.replace(first.samples[0], index=0) for _ in range(5)]
    parts[0] = dataclasses.replace(parts[0], reward=0.5)
    cut = dataclasses.replace(first, samples=(*parts, dataclasses.replace(parts[0], index=1)))
    record = _rewards([cut, second], None)
    assert record["reward_mean"] == pytest.approx((0.9 + 0.5 + 0.0 + 1.0) / 4)
    assert record["reward_min"] == 0.0


def test_train_record_has_what_is_promised() -> None:
    record = train_record(
        rollout_id=7,
        policy_version=3,
        groups=_groups(),
        result=StepResult(
            metrics={
                "loss": 0.5,
                "grad_norm": 1.5,
                "ess_fraction": 0.9,
                "kl_rollout_old": 0.01,
                "entropy": 2.0,
                "seconds": 0.7,
            }
        ),
        staleness_bound=2,
        lap=Lap(seconds=4.0, trainer_idle_fraction=0.1, generation_idle_fraction=0.2),
        wall_seconds=33.0,
        buffer=BufferFill(ready=3, pending=1, capacity=12),
        extra={"samples_generated": 40},
    )
    assert record.keys() >= TRAIN_FIELDS
    expected = {
        "kind": "train",
        "rollout_id": 7,
        "reward_mean": 0.75,
        "zero_std_fraction": 0.5,
        "num_samples": 4,
        "samples_generated": 40,
        "num_tokens": 20 + 4 * 3,
        "num_response_tokens": 20,
        "num_loss_tokens": 20,
        "response_length_mean": 5.0,
        "response_length_max": 8,
        "truncated_fraction": 0.25,
        "staleness_mean": 0.1,
        "staleness_max": 1,
        "tokens_per_second": 5.0,
        "buffer_fill": 0.25,
        "entropy": 2.0,
        "step_seconds": 0.7,
    }
    assert {k: record[k] for k in expected} == pytest.approx(expected)
    assert "seconds" not in record


def test_push_and_eval_records() -> None:
    push = push_record(
        PushResult(policy_version=4, seconds=0.5, stall_seconds=0.1, num_bytes=10, num_engines=2),
        rollout_id=3,
    )
    assert (push["kind"], push["rollout_id"], push["policy_version"], push["stall_seconds"]) == (
        "push",
        3,
        4,
        0.1,
    )
    result = EvalResult(
        name="e",
        rollout_id=3,
        policy_version_min=1,
        policy_version_max=2,
        reward_mean=0.5,
        num_samples=8,
        num_failed=0,
        response_length_mean=4.0,
        truncated_fraction=0.0,
        seconds=1.0,
    )
    assert eval_record(result) | {"kind": "eval"} == eval_record(result)
    assert eval_record(result)["policy_version_max"] == 2


@pytest.mark.parametrize(
    ("rewards", "mean"),
    [(({"right": 1.0}, "good", [1.0]), None), (({"score": 1.0}, "good", 0.0), 0.5)],
)
def test_the_mean_reward_is_of_those_that_have_a_number(
    rewards: tuple[object, ...], mean: float | None
) -> None:
    samples = tuple(make_sample(i, reward=0.0, spans=[(1, 2)]) for i in range(len(rewards)))
    for sample, reward in zip(samples, rewards, strict=True):
        sample.reward = reward
    record = train_record(
        rollout_id=1,
        policy_version=1,
        groups=[Group(group_index=0, deadline=1, admitted_version=0, samples=samples)],
        result=StepResult(metrics={}),
        staleness_bound=1,
        lap=Lap(seconds=1.0, generation_idle_fraction=0.0, trainer_idle_fraction=0.0),
        wall_seconds=1.0,
    )
    assert record["reward_mean"] == mean
