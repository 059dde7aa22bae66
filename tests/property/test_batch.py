"""Cutting a rollout into micro-batches: whatever the lengths, nothing is lost, and every rank gets equally many."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.types import TrainBatch, TrainSample
from stages.batch import balance, make_batch, pack

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=40)


def make_samples(lengths: list[int], fan_out: bool = False) -> list[TrainSample]:
    """Samples of these lengths; with fan-out several carry the same index."""
    samples = []
    for i, total in enumerate(lengths):
        n = (total + 1) // 2
        samples.append(
            TrainSample(
                index=i // 3 if fan_out else i,
                group_index=0,
                tokens=np.full(total, i),
                response_length=n,
                loss_mask=(np.arange(n, dtype=np.uint8) + 1) % 2,
                rollout_log_probs=np.zeros(n, np.float32),
                advantages=np.zeros(n, np.float32),
                reward=0.0,
                staleness=0,
            )
        )
    return samples


def cut(samples: list[TrainSample], ranks: int, max_tokens: int, **kwargs: int | None) -> TrainBatch:
    return make_batch(samples, rollout_id=3, policy_version=2, num_dp_ranks=ranks, max_tokens=max_tokens, **kwargs)


def layout(batch: TrainBatch) -> list[list[list[list[int]]]]:
    """[step][rank][micro-batch][sample], a sample told by its place in the rollout."""
    return [[[[int(s.tokens[0]) for s in mb] for mb in rank] for rank in step.per_rank] for step in batch.steps]


@settings(max_examples=300, deadline=None)
@given(lengths=LENGTHS, ranks=st.integers(1, 4), steps=st.integers(1, 3), max_tokens=st.integers(1, 60), fan_out=st.booleans())
@example(lengths=[20, 6, 6], ranks=2, steps=1, max_tokens=10, fan_out=False)  # cannot be kept
@example(lengths=[1] * 6, ranks=2, steps=1, max_tokens=4, fan_out=True)  # samples that carry the same index
def test_any_rollout(lengths: list[int], ranks: int, steps: int, max_tokens: int, fan_out: bool) -> None:
    assume(len(lengths) >= steps * ranks)
    samples = make_samples(lengths, fan_out)
    batch = cut(samples, ranks, max_tokens, num_steps_per_rollout=steps)
    assert (batch.rollout_id, batch.policy_version, len(batch.steps)) == (3, 2, steps)
    placed = layout(batch)
    assert [sorted(i for rank in step for mb in rank for i in mb) for step in placed] == [
        list(part) for part in np.array_split(np.arange(len(lengths)), steps)
    ]  # every sample exactly once, steps in the given order and as equal as can be
    for step, ranks_of in zip(batch.steps, placed, strict=True):
        members = [i for rank in ranks_of for mb in rank for i in mb]
        assert step.num_samples == len(members)
        assert step.num_loss_tokens == sum(int(samples[i].loss_mask.sum()) for i in members)
        assert len(ranks_of) == ranks
        assert len({len(rank) for rank in ranks_of}) == 1 and all(mb for rank in ranks_of for mb in rank)
        over = [mb for rank in ranks_of for mb in rank if len(mb) > 1 and sum(lengths[i] for i in mb) > max_tokens]
        # The budget holds, or the micro-batch is one sample; or else nearly every sample is alone already, and what is left
        # over does not divide by the ranks.
        assert len(over) <= len(members) % ranks
        if over:
            assert len(ranks_of[0]) == len(members) // ranks
    assert layout(cut(make_samples(lengths, fan_out), ranks, max_tokens, num_steps_per_rollout=steps)) == placed


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 60))
def test_pack_keeps_the_budget_and_is_at_most_twice_the_least(lengths: list[int], max_tokens: int) -> None:
    bins = pack(make_samples(lengths), max_tokens)
    assert Counter(int(s.tokens[0]) for b in bins for s in b) == Counter(range(len(lengths)))
    assert all(len(b) == 1 or sum(s.num_tokens for s in b) <= max_tokens for b in bins)
    short = [b for b in bins if sum(s.num_tokens for s in b) <= max_tokens]
    assert sum(2 * sum(s.num_tokens for s in b) <= max_tokens for b in short) <= 1  # two half-empty bins would be one


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 6))
def test_balance_is_within_the_longest_sample(lengths: list[int], num_bins: int) -> None:
    loads = [sum(s.num_tokens for s in b) for b in balance(make_samples(lengths), num_bins)]
    assert sum(loads) == sum(lengths) and max(loads) - min(loads) <= max(lengths)
    assert 0 not in loads or len(lengths) < num_bins


@given(st.integers(0, 5), st.integers(1, 4), st.integers(1, 3))
def test_too_few_samples(num_samples: int, ranks: int, steps: int) -> None:
    assume(num_samples < ranks * steps)
    with pytest.raises(DataError, match=f"rollout 3 has {num_samples} samples with a loss, for {steps} optimizer steps on {ranks} "):
        cut(make_samples([4] * num_samples), ranks, 10, num_steps_per_rollout=steps)


@given(st.integers(1, 30), st.integers(1, 12))
def test_global_batch_size_says_the_number_of_steps(num_samples: int, size: int) -> None:
    batch = cut(make_samples([4] * num_samples), 1, 10, global_batch_size=size)
    sizes = [s.num_samples for s in batch.steps]
    assert len(sizes) == -(-num_samples // size) and max(sizes) <= size and max(sizes) - min(sizes) <= 1


@given(st.lists(st.booleans(), min_size=4, max_size=30), st.integers(1, 3))
def test_a_sample_without_a_trained_token_only_counts(trained: list[bool], steps: int) -> None:
    assume(sum(trained) >= steps)
    samples = make_samples([4] * len(trained))
    samples = [s if t else dataclasses.replace(s, loss_mask=np.zeros_like(s.loss_mask)) for s, t in zip(samples, trained, strict=True)]
    batch = cut(samples, 1, 10, num_steps_per_rollout=steps)
    placed = sorted(i for step in layout(batch) for rank in step for mb in rank for i in mb)
    assert placed == [i for i, t in enumerate(trained) if t]
    assert sum(step.num_samples for step in batch.steps) == len(trained)
    counts = [step.num_samples - sum(len(mb) for mb in step.per_rank[0]) for step in batch.steps]
    assert max(counts) - min(counts) <= 1


def test_no_samples_at_all() -> None:
    for kwargs in ({}, {"global_batch_size": 4}):
        with pytest.raises(DataError, match="has 0 samples with a loss"):
            cut([], 1, 10, **kwargs)


def test_samples_of_one_fan_out_that_share_an_index_are_told_apart() -> None:
    lengths = [7, 8, 12, 3, 5, 2]
    samples = [dataclasses.replace(s, index=0) for s in make_samples(lengths)]
    (step,) = layout(cut(samples, 3, 12))
    assert sorted(i for rank in step for mb in rank for i in mb) == list(range(6))
