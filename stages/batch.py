"""From the samples of a rollout to optimizer steps of micro-batches, balanced over data-parallel ranks. Pure.

Nothing is truncated: a sample longer than the token budget gets a micro-batch of its own. Every rank gets equally many
micro-batches (their gradients meet in collectives).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from pipeline.errors import DataError
from pipeline.types import OptimizerStep, TrainBatch, TrainSample


def make_batch(
    samples: Sequence[TrainSample],
    *,
    rollout_id: int,
    policy_version: int,
    num_dp_ranks: int,
    num_steps_per_rollout: int | None = None,
    global_batch_size: int | None = None,
    max_tokens: int,
) -> TrainBatch:
    """`num_steps_per_rollout` optimizer steps (or steps of `global_batch_size` samples; default one), samples in the given order.

    Samples without a trained token are in no micro-batch; they count, evenly over the steps, in `num_samples`.
    Raises DataError when a step has fewer trained samples than there are ranks.
    """
    num_steps = num_steps_per_rollout or (max(1, -(-len(samples) // global_batch_size)) if global_batch_size else 1)
    trained = [s for s in samples if s.loss_mask.any()]
    if len(trained) < num_steps * num_dp_ranks:
        raise DataError(
            f"rollout {rollout_id} has {len(trained)} samples with a loss, for {num_steps} optimizer steps on {num_dp_ranks} data-parallel "
            "ranks: every rank needs one a step. Raise --rollout-batch-size or --n-samples-per-prompt, or lower --num-steps-per-rollout"
        )
    size, rest = divmod(len(trained), num_steps)
    idle = [s.weight for s in samples if not s.loss_mask.any()]
    steps, start = [], 0
    for i in range(num_steps):
        end = start + size + (i < rest)
        steps.append(_step(trained[start:end], sum(idle[i::num_steps]), num_dp_ranks, max_tokens))
        start = end
    return TrainBatch(rollout_id=rollout_id, policy_version=policy_version, steps=tuple(steps))


def _step(samples: Sequence[TrainSample], untrained_weight: float, num_ranks: int, max_tokens: int) -> OptimizerStep:
    shares = balance(samples, num_ranks)
    most_samples = min(len(share) for share in shares)  # no rank can be cut into more micro-batches than it has samples
    count = max(len(pack(share, max_tokens)) for share in shares)
    fits = count <= most_samples  # else one rank has few long samples, another many short ones: micro-batches first, ranks second
    cut = [_split(pack(share, max_tokens), count) for share in shares] if fits else _deal(samples, num_ranks, max_tokens)
    return OptimizerStep(
        per_rank=tuple(tuple(tuple(mb) for mb in rank) for rank in cut),
        num_samples=sum(s.weight for s in samples) + untrained_weight,
        num_loss_tokens=sum(s.weight * int(s.loss_mask.sum()) for s in samples),
    )


def balance(samples: Sequence[TrainSample], num_bins: int) -> list[list[TrainSample]]:
    """Longest processing time first: the next longest sample goes to the least loaded bin, at most 4/3 of the optimum
    (Graham 1969, "Bounds on multiprocessing timing anomalies"). Every bin gets a sample where there are enough; deterministic.
    """
    bins: list[list[TrainSample]] = [[] for _ in range(num_bins)]
    loads = [(0, 0, i) for i in range(num_bins)]  # (tokens, samples, bin)
    for sample in sorted(samples, key=lambda s: (-s.num_tokens, s.index)):
        tokens, count, i = heapq.heappop(loads)
        bins[i].append(sample)
        heapq.heappush(loads, (tokens + sample.num_tokens, count + 1, i))
    return bins


def pack(samples: Sequence[TrainSample], max_tokens: int) -> list[list[TrainSample]]:
    """First-fit decreasing bin packing (Johnson 1973): few micro-batches of at most `max_tokens` tokens."""
    bins: list[list[TrainSample]] = []
    room: list[int] = []
    for sample in sorted(samples, key=lambda s: (-s.num_tokens, s.index)):
        place = next((i for i, left in enumerate(room) if sample.num_tokens <= left), None)
        if place is None:
            bins.append([sample])
            room.append(max_tokens - sample.num_tokens)
        else:
            bins[place].append(sample)
            room[place] -= sample.num_tokens
    return bins


def _split(bins: list[list[TrainSample]], count: int) -> list[list[TrainSample]]:
    """Halve the fullest micro-batches until there are `count`; there must be as many samples."""
    while len(bins) < count:
        fullest = max((i for i, b in enumerate(bins) if len(b) > 1), key=lambda i: _tokens(bins[i]))
        bins += balance(bins.pop(fullest), 2)
    return bins


def _deal(samples: Sequence[TrainSample], num_ranks: int, max_tokens: int) -> list[list[list[TrainSample]]]:
    """Pack over all ranks, make the number a multiple of the ranks, deal the micro-batches out, equally many to each.

    Where samples do not divide by the ranks there may be no such number of micro-batches within the budget (three long
    samples on two ranks): then the smallest are merged over it, as few and as small as can be.
    """
    bins = pack(samples, max_tokens)
    count = -(-len(bins) // num_ranks)
    if count * num_ranks <= len(samples):
        bins = _split(bins, count * num_ranks)
    else:
        count = len(samples) // num_ranks
        while len(bins) > count * num_ranks:
            bins.sort(key=_tokens, reverse=True)
            last = bins.pop()
            bins[-1] = bins[-1] + last
    cut: list[list[list[TrainSample]]] = [[] for _ in range(num_ranks)]
    for micro_batch in sorted(bins, key=_tokens, reverse=True):  # longest first, to the least loaded rank that has room
        min((rank for rank in cut if len(rank) < count), key=lambda rank: sum(map(_tokens, rank))).append(micro_batch)
    return cut


def _tokens(samples: Sequence[TrainSample]) -> int:
    return sum(s.num_tokens for s in samples)
