"""Cutting a rollout into micro-batches: whatever the lengths, nothing is lost, and every rank gets
equally many."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pipeline.core.flops import Cost
from pipeline.core.types import TrainBatch, TrainSample
from stages.batch import balance, count_out, make_batch, pack

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


def make_groups(groups: list[tuple[int, list[int]]]) -> list[TrainSample]:
    """(prompt length, response lengths) a group; told apart by their first token behind the prompt,
    which is their place."""
    samples: list[TrainSample] = []
    for number, (prompt, responses) in enumerate(groups):
        for n in responses:
            base = make_samples([2 * n])[0]
            tokens = np.concatenate([np.full(prompt, -1 - number), np.full(n, len(samples))])
            samples.append(
                dataclasses.replace(base, index=len(samples), group_index=number, tokens=tokens)
            )
    return samples


def place(s: TrainSample) -> int:
    return int(s.tokens[-1])


def cut(samples: list[TrainSample], ranks: int, max_tokens: int, **kwargs: Any) -> TrainBatch:
    return make_batch(
        samples, rollout_id=3, policy_version=2, num_dp_ranks=ranks, max_tokens=max_tokens, **kwargs
    )


def layout(batch: TrainBatch) -> list[list[list[list[int]]]]:
    """[step][rank][micro-batch][sample], a sample told by its place in the rollout."""
    return [
        [[[int(s.tokens[0]) for s in mb] for mb in rank] for rank in step.per_rank]
        for step in batch.steps
    ]


@settings(max_examples=300)
@given(
    lengths=LENGTHS,
    ranks=st.integers(1, 4),
    steps=st.integers(1, 3),
    max_tokens=st.integers(1, 60),
    fan_out=st.booleans(),
)
@example(lengths=[20, 6, 6], ranks=2, steps=1, max_tokens=10, fan_out=False)  # cannot be kept
# samples that carry the same index
@example(lengths=[1] * 6, ranks=2, steps=1, max_tokens=4, fan_out=True)
def test_any_rollout(
    lengths: list[int], ranks: int, steps: int, max_tokens: int, fan_out: bool
) -> None:
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
        assert len({len(rank) for rank in ranks_of}) == 1 and all(
            mb for rank in ranks_of for mb in rank
        )
        over = [
            mb
            for rank in ranks_of
            for mb in rank
            if len(mb) > 1 and sum(lengths[i] for i in mb) > max_tokens
        ]
        # The budget holds, or the micro-batch is one sample; or else nearly every sample is alone
        # already, and what is left over does not divide by the ranks.
        assert len(over) <= len(members) % ranks
        if over:
            assert len(ranks_of[0]) == len(members) // ranks
    assert (
        layout(cut(make_samples(lengths, fan_out), ranks, max_tokens, num_steps_per_rollout=steps))
        == placed
    )


@settings(max_examples=100)
@given(LENGTHS, st.integers(1, 60))
def test_pack_keeps_the_budget_and_is_at_most_twice_the_least(
    lengths: list[int], max_tokens: int
) -> None:
    bins = pack(make_samples(lengths), max_tokens)
    assert Counter(int(s.tokens[0]) for b in bins for s in b) == Counter(range(len(lengths)))
    assert all(len(b) == 1 or sum(s.num_tokens for s in b) <= max_tokens for b in bins)
    short = [b for b in bins if sum(s.num_tokens for s in b) <= max_tokens]
    # two half-empty bins would be one
    assert sum(2 * sum(s.num_tokens for s in b) <= max_tokens for b in short) <= 1


@settings(max_examples=100)
@given(LENGTHS, st.integers(1, 6))
def test_balance_is_within_the_longest_sample(lengths: list[int], num_bins: int) -> None:
    loads = [sum(s.num_tokens for s in b) for b in balance(make_samples(lengths), num_bins)]
    assert sum(loads) == sum(lengths) and max(loads) - min(loads) <= max(lengths)
    assert 0 not in loads or len(lengths) < num_bins


@given(st.integers(0, 5), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_too_few_samples(num_samples: int, ranks: int, steps: int, balanced: bool) -> None:
    """A step without a sample is empty; a rank without one takes part in a step of others, and
    nothing of what it is given counts."""
    assume(num_samples < ranks * steps)
    samples = make_samples([4 + i for i in range(num_samples)])
    batch = cut(samples, ranks, 10, num_steps_per_rollout=steps, balanced=balanced)
    shares = [len(part) for part in np.array_split(np.arange(num_samples), steps)]
    assert [step.num_samples for step in batch.steps] == shares
    assert [step.is_empty for step in batch.steps] == [n == 0 for n in shares]
    placed = []
    for step, n in zip(batch.steps, shares, strict=True):
        assert len(step.per_rank) == ranks and len({len(rank) for rank in step.per_rank}) == 1
        members = [s for rank in step.per_rank for mb in rank for s in mb]
        real = [s for s in members if s.loss_mask.any()]
        assert n == 0 or all(rank and all(rank) for rank in step.per_rank)
        assert step.num_fillers == len(members) - len(real) == (max(0, ranks - n) if n else 0)
        assert all(s.weight == 0 for s in members if not s.loss_mask.any())
        assert step.num_loss_tokens == sum(int(s.loss_mask.sum()) for s in real)
        placed += sorted(s.index for s in real)
    assert placed == list(range(num_samples))


@given(st.integers(1, 30), st.integers(1, 12))
def test_global_batch_size_says_the_number_of_steps(num_samples: int, size: int) -> None:
    batch = cut(make_samples([4] * num_samples), 1, 10, global_batch_size=size)
    sizes = [s.num_samples for s in batch.steps]
    assert (
        len(sizes) == -(-num_samples // size)
        and max(sizes) <= size
        and max(sizes) - min(sizes) <= 1
    )


@given(st.lists(st.booleans(), min_size=4, max_size=30), st.integers(1, 3))
def test_a_sample_without_a_trained_token_only_counts(trained: list[bool], steps: int) -> None:
    assume(sum(trained) >= steps)
    samples = make_samples([4] * len(trained))
    samples = [
        s if t else dataclasses.replace(s, loss_mask=np.zeros_like(s.loss_mask))
        for s, t in zip(samples, trained, strict=True)
    ]
    batch = cut(samples, 1, 10, num_steps_per_rollout=steps)
    placed = sorted(i for step in layout(batch) for rank in step for mb in rank for i in mb)
    assert placed == [i for i, t in enumerate(trained) if t]
    assert sum(step.num_samples for step in batch.steps) == len(trained)
    counts = [step.num_samples - sum(len(mb) for mb in step.per_rank[0]) for step in batch.steps]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("kwargs", [{}, {"global_batch_size": 4}])
def test_no_samples_at_all(kwargs: dict[str, int]) -> None:
    (step,) = cut([], 2, 10, **kwargs).steps
    assert step.is_empty and step.per_rank == ((), ()) and step.num_samples == 0


def test_samples_of_one_fan_out_that_share_an_index_are_told_apart() -> None:
    lengths = [7, 8, 12, 3, 5, 2]
    samples = [dataclasses.replace(s, index=0) for s in make_samples(lengths)]
    (step,) = layout(cut(samples, 3, 12))
    assert sorted(i for rank in step for mb in rank for i in mb) == list(range(6))


GROUPS = st.lists(
    st.tuples(st.integers(1, 30), st.lists(st.integers(1, 20), min_size=1, max_size=6)),
    min_size=1,
    max_size=10,
)
COSTS = st.builds(
    Cost,
    linear=st.floats(1, 10),
    attention=st.floats(0, 1),
    head=st.floats(0, 5),
    shares_prompts=st.booleans(),
)


def first_fit_decreasing(sizes: list[int], room: int) -> int:
    """The number of bins, as the text-book has it."""
    bins: list[int] = []
    for size in sorted(sizes, reverse=True):
        i = next((i for i, used in enumerate(bins) if used + size <= room), None)
        if i is None:
            bins.append(size)
        else:
            bins[i] += size
    return len(bins)


@settings(max_examples=200)
@given(GROUPS, st.integers(1, 80))
def test_siblings_together_cost_no_micro_batch(
    groups: list[tuple[int, list[int]]], max_tokens: int
) -> None:
    samples = make_groups(groups)
    bins = pack(samples, max_tokens)
    assert sorted(place(s) for b in bins for s in b) == list(range(len(samples)))
    assert all(len(b) == 1 or sum(s.num_tokens for s in b) <= max_tokens for b in bins)
    assert len(bins) <= first_fit_decreasing([s.num_tokens for s in samples], max_tokens)


@settings(max_examples=200)
@given(GROUPS, st.integers(1, 80), st.floats(0, 1))
def test_shared_prompts_are_packed_for_the_least_work(
    groups: list[tuple[int, list[int]]], max_tokens: int, attention: float
) -> None:
    cost = Cost(attention=attention, shares_prompts=True)
    samples = make_groups(groups)
    bins = pack(samples, max_tokens, cost)
    assert sorted(place(s) for b in bins for s in b) == list(range(len(samples)))
    assert all(len(b) == 1 or sum(s.num_tokens for s in b) <= max_tokens for b in bins)
    assert sum(map(cost.of_micro_batch, bins)) <= sum(
        map(cost.of_micro_batch, pack(samples, max_tokens))
    ) * (1 + 1e-9)
    full = [sum(s.num_tokens for s in b) for b in bins]
    assert sum(2 * n <= max_tokens for n in full) <= 1


def test_long_tailed_groups_are_kept_together_at_the_price_of_a_few_micro_batches() -> None:
    rng = np.random.default_rng(0)
    samples = make_groups(
        [(40, [int(n) for n in np.clip(rng.lognormal(3.5, 1.0, 8), 2, 300)]) for _ in range(32)]
    )
    shared, alone = pack(samples, 1000, Cost(shares_prompts=True)), pack(samples, 1000)
    prompts = [
        len({(s.group_index, i) for i, b in enumerate(bins) for s in b}) for bins in (shared, alone)
    ]
    assert prompts[0] <= 36 < 50 <= prompts[1] and len(alone) < len(shared) <= 1.5 * len(alone)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 20), st.integers(1, 20))
def test_equal_groups_that_fit_are_never_cut(
    num_groups: int, size: int, prompt: int, response: int
) -> None:
    """The common case: a micro-batch of whole groups, so every prompt is packed once."""
    samples = make_groups([(prompt, [response] * size)] * num_groups)
    bins = pack(samples, 2 * size * (prompt + response))
    assert len(bins) == -(-num_groups // 2)
    homes = {(s.group_index, i) for i, b in enumerate(bins) for s in b}
    assert len(homes) == num_groups


@settings(max_examples=200)
@given(GROUPS, st.integers(1, 4), COSTS)
def test_balance_is_within_the_most_costly_and_no_worse_than_sample_by_sample(
    groups: list[tuple[int, list[int]]], num_bins: int, cost: Cost
) -> None:
    samples = make_groups(groups)
    bins = balance(samples, num_bins, cost)
    assert sorted(place(s) for b in bins for s in b) == list(range(len(samples)))
    assert all(bins) or len(samples) < num_bins
    worst = max(map(cost.of_micro_batch, bins))
    alone = [0.0] * num_bins
    for weight in sorted(map(cost.of, samples), reverse=True):
        alone[alone.index(min(alone))] += weight
    assert worst <= max(alone) * (1 + 1e-9)
    mean = sum(map(cost.of, samples)) / num_bins
    assert worst <= (mean + max(map(cost.of, samples))) * (1 + 1e-9)


def test_work_is_balanced_by_operations_not_by_tokens() -> None:
    """One sample of 1000 tokens looks at as many pairs as a hundred of 100: by tokens it would be
    given as many again for company."""
    samples = make_samples([1000] + [100] * 20)
    quadratic = Cost(linear=1.0, attention=1.0)
    by_tokens, by_work = balance(samples, 2), balance(samples, 2, quadratic)
    assert sorted(map(len, by_tokens)) == [6, 15]
    assert sorted(map(len, by_work)) == [1, 20]


@settings(max_examples=100)
@given(GROUPS, st.integers(1, 4), st.integers(1, 5))
def test_static_micro_batches(groups: list[tuple[int, list[int]]], ranks: int, size: int) -> None:
    samples = make_groups(groups)
    assume(len(samples) >= ranks)
    assert [len(b) for b in count_out(samples, size)][:-1] == [size] * (
        -(-len(samples) // size) - 1
    )
    (step,) = cut(samples, ranks, 1, micro_batch_size=size).steps
    sizes = [[len(mb) for mb in rank] for rank in step.per_rank]
    assert sum(map(sum, sizes)) == len(samples) and len({len(rank) for rank in sizes}) == 1
    over = [n for rank in sizes for n in rank if n > size]
    assert len(over) <= len(samples) % ranks


@given(st.lists(st.integers(1, 40), min_size=4, max_size=20), st.integers(1, 4))
def test_unbalanced_is_in_turn(lengths: list[int], ranks: int) -> None:
    (step,) = layout(cut(make_samples(lengths), ranks, 10_000, balanced=False))
    assert [sorted(i for mb in rank for i in mb) for rank in step] == [
        list(range(r, len(lengths), ranks)) for r in range(ranks)
    ]
