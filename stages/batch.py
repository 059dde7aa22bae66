"""From the samples of a rollout to optimizer steps of micro-batches, balanced over data-parallel
ranks. Pure.

Nothing is truncated: a sample longer than the token budget gets a micro-batch of its own. Every
rank gets equally many micro-batches (their gradients meet in collectives). Samples of one prompt go
together where that costs nothing: a micro-batch that holds them is given their prompt once."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Sequence

from pipeline.core.flops import TOKENS, Cost
from pipeline.core.types import OptimizerStep, TrainBatch, TrainSample

Samples = Sequence[TrainSample]
Packer = Callable[[Samples], list[list[TrainSample]]]  # samples to micro-batches


def make_batch(
    samples: Samples,
    *,
    rollout_id: int,
    policy_version: int,
    num_dp_ranks: int,
    num_steps_per_rollout: int | None = None,
    global_batch_size: int | None = None,
    max_tokens: int,
    micro_batch_size: int | None = None,
    cost: Cost = TOKENS,
    balanced: bool = True,
) -> TrainBatch:
    """`num_steps_per_rollout` optimizer steps (or steps of `global_batch_size` trajectories;
    default one), samples in the given order. The samples of a trajectory are in one step.

    A micro-batch has at most `max_tokens` tokens, or `micro_batch_size` samples where that is
    given. `cost`: what ranks are balanced by; not `balanced`: samples are dealt out to the ranks in
    turn. Samples without a trained token are in no micro-batch; trajectories without one count,
    evenly over the steps, in `num_samples`. A step without a trained sample is empty; a rank
    without one, in a step of others, is given one of theirs without its loss.
    """
    trajectories = _trajectories(samples)
    num_steps = num_steps_per_rollout or (
        max(1, -(-len(trajectories) // global_batch_size)) if global_batch_size else 1
    )
    kept = [[s for s in parts if s.loss_mask.any()] for parts in trajectories]
    trained = [parts for parts in kept if parts]
    size, rest = divmod(len(trained), num_steps)
    idle = [
        sum(s.weight for s in parts)
        for parts, left in zip(trajectories, kept, strict=True)
        if not left
    ]

    def packer(part: Samples) -> list[list[TrainSample]]:
        return (
            pack(part, max_tokens, cost)
            if micro_batch_size is None
            else count_out(part, micro_batch_size, cost)
        )

    steps, start = [], 0
    for i in range(num_steps):
        end = start + size + (i < rest)
        part = [
            dataclasses.replace(s, trajectory=number)
            for number, parts in enumerate(trained[start:end])
            for s in parts
        ]
        steps.append(_step(part, sum(idle[i::num_steps]), num_dp_ranks, packer, cost, balanced))
        start = end
    return TrainBatch(rollout_id=rollout_id, policy_version=policy_version, steps=tuple(steps))


def _trajectories(samples: Samples) -> list[list[TrainSample]]:
    """Samples by the trajectory that they are parts of, in order of appearance."""
    found: dict[tuple[str, int], list[TrainSample]] = {}
    for i, s in enumerate(samples):
        alone = s.trajectory < 0
        found.setdefault(("sample", i) if alone else ("trajectory", s.trajectory), []).append(s)
    return list(found.values())


def _step(
    samples: Samples,
    untrained_weight: float,
    num_ranks: int,
    packer: Packer,
    cost: Cost,
    balanced: bool,
) -> OptimizerStep:
    trained, samples = samples, _one_a_rank(samples, num_ranks)
    shares = (
        balance(samples, num_ranks, cost)
        if balanced
        else [list(samples[r::num_ranks]) for r in range(num_ranks)]
    )
    # no rank can be cut into more micro-batches than it has samples
    most_samples = min(len(share) for share in shares)
    packs = [packer(share) for share in shares]
    count = max(map(len, packs))
    # else one rank has few long samples, another many short ones: micro-batches first, ranks second
    fits = count <= most_samples
    cut = (
        [_split(bins, count, cost) for bins in packs]
        if fits
        else _deal(samples, num_ranks, packer, cost)
    )
    return OptimizerStep(
        per_rank=tuple(tuple(tuple(mb) for mb in rank) for rank in cut),
        num_samples=sum(s.weight for s in trained) + untrained_weight,
        num_loss_tokens=sum(int(s.loss_mask.sum()) for s in trained),
    )


def _one_a_rank(samples: Samples, num_ranks: int) -> Samples:
    """At least as many samples as there are ranks, unless there is none: every rank takes part in
    the collectives of a step."""
    if not samples or len(samples) >= num_ranks:
        return samples
    shortest = min(samples, key=lambda s: (s.multimodal is not None, s.num_tokens, s.index))
    return [*samples, *[shortest.without_loss()] * (num_ranks - len(samples))]


# --- ranks ----------------------------------------------------------------------------------------


def balance(samples: Samples, num_bins: int, cost: Cost = TOKENS) -> list[list[TrainSample]]:
    """Longest processing time first: the next most costly goes to the least loaded bin, at most 4/3
    of the optimum (Graham 1969, "Bounds on multiprocessing timing anomalies"). Every bin gets a
    sample where there are enough; deterministic.

    Dealt out are samples; or, where that leaves the most loaded bin with no more work, all samples
    of a prompt at once, which are cheaper together."""
    single = _longest_first([[s] for s in samples], num_bins, cost)
    families = _families(samples)
    if num_bins == 1 or len(families) < num_bins or len(families) == len(samples):
        return single
    together = _longest_first(families, num_bins, cost)
    return min(together, single, key=lambda bins: max(map(cost.of_micro_batch, bins)))


def _longest_first(units: Sequence[Samples], num_bins: int, cost: Cost) -> list[list[TrainSample]]:
    """Deals out whole units to the bins."""
    bins: list[list[TrainSample]] = [[] for _ in range(num_bins)]
    loads = [(0.0, 0, i) for i in range(num_bins)]  # (cost, samples, bin)
    weighed = [(cost.of_micro_batch(unit), unit) for unit in units]
    for weight, unit in sorted(weighed, key=lambda w: (-w[0], w[1][0].index)):
        load, count, i = heapq.heappop(loads)
        bins[i].extend(unit)
        heapq.heappush(loads, (load + weight, count + len(unit), i))
    return bins


def _families(samples: Samples) -> list[list[TrainSample]]:
    """Samples by the prompt that they share, in order of appearance."""
    found: dict[tuple[int, int], list[TrainSample]] = {}
    for s in samples:
        found.setdefault(s.family, []).append(s)
    return list(found.values())


# --- micro-batches --------------------------------------------------------------------------------


def pack(samples: Samples, max_tokens: int, cost: Cost = TOKENS) -> list[list[TrainSample]]:
    """First-fit decreasing bin packing (Johnson 1973): few micro-batches of at most `max_tokens`
    tokens.

    What is packed are all samples of a prompt at once; or one by one, each beside its siblings if
    there is room; or one by one. The first of the three that costs no more than the others where
    prompts are shared, that takes no more micro-batches where they are not. Of no two micro-batches
    are both half empty, in any of the three."""
    single = sorted(([s] for s in samples), key=_unit_order)
    families = sorted(
        (sorted(f, key=lambda s: (-s.num_tokens, s.index)) for f in _families(samples)),
        key=_unit_order,
    )
    alone = _first_fit(single, max_tokens)
    if len(alone) == 1 or len(families) == len(samples):
        return alone
    pieces = [
        piece
        for f in families
        for piece in (_first_fit([[s] for s in f], max_tokens) if _tokens(f) > max_tokens else [f])
    ]
    ways = (
        _first_fit(sorted(pieces, key=_unit_order), max_tokens),
        _beside_siblings(families, max_tokens),
        alone,
    )
    return min(
        ways,
        key=lambda bins: sum(map(cost.of_micro_batch, bins)) if cost.shares_prompts else len(bins),
    )


def _first_fit(units: Sequence[Samples], max_tokens: int) -> list[list[TrainSample]]:
    """Puts each whole unit into the first bin with room for it."""
    bins: list[list[TrainSample]] = []
    room: list[int] = []
    for unit in units:
        size = _tokens(unit)
        place = next((i for i, left in enumerate(room) if size <= left), len(bins))
        _put(unit, place, bins, room, max_tokens)
    return bins


def _beside_siblings(families: Sequence[Samples], max_tokens: int) -> list[list[TrainSample]]:
    """Puts each sample into the first bin with room for it; bins that hold a sibling are tried
    first."""
    bins: list[list[TrainSample]] = []
    room: list[int] = []
    for family in families:
        homes: list[int] = []
        for sample in family:
            place = next(
                (i for i in (*homes, *range(len(bins))) if sample.num_tokens <= room[i]), len(bins)
            )
            homes.append(place)
            _put([sample], place, bins, room, max_tokens)
    return bins


def _put(
    unit: Samples, place: int, bins: list[list[TrainSample]], room: list[int], max_tokens: int
) -> None:
    if place == len(bins):
        bins.append([])
        room.append(max_tokens)
    bins[place].extend(unit)
    room[place] -= _tokens(unit)


def _unit_order(unit: Samples) -> tuple[int, int]:
    return -_tokens(unit), unit[0].index


def count_out(
    samples: Samples, micro_batch_size: int, cost: Cost = TOKENS
) -> list[list[TrainSample]]:
    """Micro-batches of `micro_batch_size` samples (the last may have fewer), taken prompt by
    prompt, so that siblings are together."""
    order = [
        s
        for family in sorted(_families(samples), key=lambda f: -max(map(cost.of, f)))
        for s in family
    ]
    return [order[i : i + micro_batch_size] for i in range(0, len(order), micro_batch_size)]


def _split(bins: list[list[TrainSample]], count: int, cost: Cost) -> list[list[TrainSample]]:
    """Halves the fullest micro-batches until there are `count`; there must be as many samples."""
    while len(bins) < count:
        fullest = max((i for i, b in enumerate(bins) if len(b) > 1), key=lambda i: _tokens(bins[i]))
        bins += balance(bins.pop(fullest), 2, cost)
    return bins


def _deal(
    samples: Samples, num_ranks: int, packer: Packer, cost: Cost
) -> list[list[list[TrainSample]]]:
    """Pack over all ranks, make the number a multiple of the ranks, deal the micro-batches out,
    equally many to each.

    Where samples do not divide by the ranks there may be no such number of micro-batches within the
    budget (three long samples on two ranks): then the smallest are merged over it, as few and as
    small as can be."""
    bins = packer(samples)
    count = -(-len(bins) // num_ranks)
    if count * num_ranks <= len(samples):
        bins = _split(bins, count * num_ranks, cost)
    else:
        count = len(samples) // num_ranks
        while len(bins) > count * num_ranks:
            bins.sort(key=_tokens, reverse=True)
            last = bins.pop()
            bins[-1] = bins[-1] + last
    cut: list[list[list[TrainSample]]] = [[] for _ in range(num_ranks)]
    loads = [0.0] * num_ranks
    weighed = sorted(
        ((cost.of_micro_batch(mb), mb) for mb in bins), key=lambda w: w[0], reverse=True
    )
    for weight, micro_batch in weighed:  # most costly first, to the least loaded rank that has room
        rank = min((r for r in range(num_ranks) if len(cut[r]) < count), key=lambda r: loads[r])
        cut[rank].append(micro_batch)
        loads[rank] += weight
    return cut


def _tokens(samples: Samples) -> int:
    return sum(s.num_tokens for s in samples)
