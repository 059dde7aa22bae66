"""The driver's side of the learner's senders: what is copied, what is gathered while it is sent,
and a rank that does not answer. The ranks are senders in threads of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from pipeline.core.errors import LearnerError, StaleWeightsError
from pipeline.workers.rank_senders import SENDING, RankSenders
from stages.publish.sender import BroadcastSender

CPU = torch.device("cpu")


class FakeRank:
    """An actor with two threads, as RankActor has: one for steps, one that serves pushes."""

    def __init__(self, weights: Sequence[tuple[str, torch.Tensor]]) -> None:
        self.threads = {name: ThreadPoolExecutor(1) for name in ("steps", SENDING)}
        self.sender = BroadcastSender(lambda: iter(weights), lambda path: None, CPU)
        self.send = FakeMethod(self, "steps")
        self.silent = False

    def call(self, thread: str, method: str, *args: Any) -> asyncio.Future[Any]:
        if self.silent:
            return asyncio.get_running_loop().create_future()
        work = getattr(self.sender, method)
        return asyncio.ensure_future(
            asyncio.get_running_loop().run_in_executor(self.threads[thread], work, *args)
        )


class FakeMethod:
    def __init__(self, rank: FakeRank, thread: str) -> None:
        self._rank, self._thread = rank, thread

    def options(self, *, concurrency_group: str) -> FakeMethod:
        return FakeMethod(self._rank, concurrency_group)

    def remote(self, method: str, *args: Any) -> asyncio.Future[Any]:
        return self._rank.call(self._thread, method, *args)


class Senders(RankSenders):
    def __init__(self, ranks: Sequence[FakeRank], answer_seconds: float = 30.0) -> None:
        super().__init__(answer_seconds)
        self._actors = list(ranks)
        self.silent: list[tuple[int, str]] = []

    def _check_usable(self) -> None:
        if self.silent:
            raise LearnerError("it is not usable")

    async def _all(self, method: str, *args: Any) -> list[Any]:
        assert method == "send"
        return await self._results([rank.send.remote(*args) for rank in self._actors])

    async def _results(self, refs: Sequence[Any], ranks: Sequence[int] | None = None) -> list[Any]:
        return [await ref for ref in refs]

    def _silent(self, rank: int, what: str) -> Exception:
        self.silent.append((rank, what))
        return LearnerError(f"rank {rank} gave no answer to {what}")


def weights(stage: int) -> list[tuple[str, torch.Tensor]]:
    return [(f"{stage}.{i}", torch.full((8,), 10.0 * stage + i)) for i in range(5)]  # 32 bytes each


@pytest.fixture
def ranks() -> Iterator[list[FakeRank]]:
    made = [FakeRank(weights(0)), FakeRank([]), FakeRank(weights(2))]
    yield made
    for rank in made:
        for thread in rank.threads.values():
            thread.shutdown()


def taken(rank: FakeRank, bucket: int) -> list[float]:
    """As a broadcast would take it."""
    assert rank.sender._gathered is not None
    flat = rank.sender._gathered.take(bucket, 10.0).view(torch.float32)[::8].tolist()
    rank.sender._gathered.done(bucket)
    return flat


async def test_what_fits_is_copied_and_ranks_that_own_nothing_send_nothing(
    ranks: list[FakeRank],
) -> None:
    senders = Senders(ranks)
    prepared = await senders.prepare(64, 160)
    assert prepared.copied and list(prepared.buckets) == [0, 2]
    assert [len(bucket) for bucket in prepared.buckets[2]] == [2, 2, 1]
    senders._went_on = True  # which is nothing to a copy
    for _ in range(2):
        async with senders.sending():
            assert [taken(ranks[2], i) for i in range(3)] == [[20.0, 21.0], [22.0, 23.0], [24.0]]
    assert ranks[0].sender.peak_bytes == 160 + 32


async def test_what_does_not_fit_is_gathered_each_time_in_halves(ranks: list[FakeRank]) -> None:
    """Two of which are a bucket, and what the next is made of has the other."""
    senders = Senders(ranks)
    prepared = await senders.prepare(64, 159)
    assert not prepared.copied and [len(b) for b in prepared.buckets[0]] == [1] * 5
    for _ in range(2):
        async with senders.sending():
            for rank, first in ((ranks[0], 0.0), (ranks[2], 20.0)):
                found = [await asyncio.to_thread(taken, rank, i) for i in range(5)]
                assert found == [[first + i] for i in range(5)]
    assert ranks[0].sender.peak_bytes == ranks[2].sender.peak_bytes == 2 * 32 + 32


async def test_a_pass_that_is_broken_off_ends_on_all_ranks(ranks: list[FakeRank]) -> None:
    senders = Senders(ranks)
    await senders.prepare(64, 0)
    with pytest.raises(ZeroDivisionError):
        async with senders.sending():
            await asyncio.to_thread(taken, ranks[0], 0)
            raise ZeroDivisionError
    # their threads are free: the next pass comes to its end, and so would a step
    async with senders.sending():
        assert await asyncio.to_thread(taken, ranks[2], 0) == [20.0]


async def test_weights_that_were_not_copied_are_gone_when_the_learner_goes_on(
    ranks: list[FakeRank],
) -> None:
    senders = Senders(ranks)
    await senders.prepare(64, 0)
    senders._went_on = True
    with pytest.raises(StaleWeightsError, match="--push-staging-bytes"):
        async with senders.sending():
            pass
    await senders.prepare(64, 0)
    async with senders.sending():
        assert await asyncio.to_thread(taken, ranks[0], 0) == [0.0]


async def test_a_rank_that_does_not_answer_is_named(ranks: list[FakeRank]) -> None:
    senders = Senders(ranks, answer_seconds=0.05)
    await senders.prepare(64, None)
    ranks[2].silent = True
    with pytest.raises(LearnerError, match=r"rank 2 gave no answer to 'join' of a push within 0.0"):
        await senders.join(2, "g", "127.0.0.1", 1, 2, "gloo")
    assert [rank for rank, _ in senders.silent] == [2]
