"""Buckets that are filled by one thread and taken by another."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from pipeline.core.errors import WeightSyncError
from stages.publish.buckets import meta_of, split
from stages.publish.gathered import Gathered
from tests.unit.stages.publish.unflatten import unflatten

WEIGHTS = [(f"w{i}", torch.full((8,), float(i))) for i in range(6)]  # 32 bytes each
BUCKETS = split([meta_of(n, t) for n, t in WEIGHTS], 32)


def memory(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


class Watched:
    """The weights, and how many of them were asked for."""

    def __init__(self) -> None:
        self.asked = 0
        self.third = threading.Event()

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for weight in WEIGHTS:
            self.asked += 1
            if self.asked == 3:
                self.third.set()
            yield weight


def test_two_at_a_time_the_next_is_gathered_when_the_one_before_is_sent() -> None:
    gathered, weights = Gathered(BUCKETS, memory, at_once=2), Watched()
    filling = threading.Thread(target=gathered.fill, args=(iter(weights),))
    filling.start()
    got = dict(unflatten(BUCKETS[0], gathered.take(0, 10.0)))
    assert gathered.take(1, 10.0) is not None
    assert weights.asked == 2 and not weights.third.is_set(), "a third would be one too many"
    gathered.done(0)
    assert weights.third.wait(10.0)
    for i in range(1, len(BUCKETS)):
        got |= dict(unflatten(BUCKETS[i], gathered.take(i, 10.0)))
        gathered.done(i)
    filling.join(10.0)
    assert all(torch.equal(got[name], tensor) for name, tensor in WEIGHTS)
    assert gathered.peak_bytes == 2 * 32 + 32  # and the tensor on its way
    with pytest.raises(WeightSyncError, match="nothing to send: bucket 0 of 6"):
        gathered.take(0, 10.0)


def test_when_nobody_wants_more_the_collective_runs_to_its_end() -> None:
    gathered, weights = Gathered(BUCKETS, memory, at_once=2), Watched()
    filling = threading.Thread(target=gathered.fill, args=(iter(weights),))
    filling.start()
    gathered.take(1, 10.0)
    gathered.end()
    filling.join(10.0)
    assert not filling.is_alive() and weights.asked == len(WEIGHTS)
    with pytest.raises(WeightSyncError, match="nothing to send"):
        gathered.take(0, 10.0)


def test_all_are_kept_unless_told_otherwise() -> None:
    gathered = Gathered(BUCKETS, memory)
    gathered.fill(iter(WEIGHTS))
    for _ in range(2):
        for i in reversed(range(len(BUCKETS))):
            gathered.take(i, 0.0)
            gathered.done(i)
    assert gathered.peak_bytes == 6 * 32 + 32


def test_a_bucket_that_does_not_come_is_not_waited_for_without_end() -> None:
    with pytest.raises(WeightSyncError, match=r"was not gathered within 0\.01 s"):
        Gathered(BUCKETS, memory, at_once=2).take(0, 0.01)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (WEIGHTS[:5], "and nothing came"),
        ([*WEIGHTS, ("more", torch.zeros(1))], "more is one more than was said"),
        ([("w0", torch.zeros(9)), *WEIGHTS[1:]], r"\[8\]\) was to be sent, and .*\[9\]\) came"),
    ],
)
def test_what_is_not_as_it_was_described_is_refused(
    weights: list[tuple[str, torch.Tensor]], said: str
) -> None:
    gathered = Gathered(BUCKETS, memory)
    with pytest.raises(WeightSyncError, match=said):
        gathered.fill(iter(weights))
    with pytest.raises(WeightSyncError, match=said):
        gathered.take(0, 0.0)
