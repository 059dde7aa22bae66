"""The memory of the learner's ranks, lent to the engines on their devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pipeline.workers.learner_group import LearnerGroup
from stages.publish.buckets import TensorMeta


class LentMemory:
    """`WeightLender`: rank 0 puts a bucket into shared memory, and every rank lends it to those on
    its own device."""

    def __init__(self, learner: LearnerGroup) -> None:
        self._learner = learner

    async def gather(self, max_bucket_bytes: int) -> list[list[TensorMeta]]:
        return await self._learner.gather(max_bucket_bytes)

    async def lend(
        self, bucket: int, metas: Sequence[TensorMeta], readers: Mapping[int, int]
    ) -> dict[int, list[bytes]]:
        shared = (await self._learner.lend("put", {0: (bucket,)}))[0]
        told = {rank: (shared, metas, count) for rank, count in readers.items()}
        return await self._learner.lend("lend", told)

    async def take_back(self, ranks: Iterable[int]) -> None:
        await self._learner.lend("take_back", dict.fromkeys(ranks, ()))

    async def close(self) -> None:
        await self._learner.lend("close", {0: ()})
