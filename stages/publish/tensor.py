"""Weights for engines that have their devices in common with the learner (--colocate): nothing is
sent, engines are told where in memory a bucket lies, and copy it from there.

A process group would be no way: NCCL refuses two ranks on one device. What is passed on, and whom
it may be passed to, is in stages/publish/handles.py."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from configs.schema import ClusterConfig
from pipeline.core.errors import SlipstreamError, WeightSyncError
from pipeline.core.protocols import WeightLender
from pipeline.core.time import TimeSource
from stages.publish.buckets import TensorMeta, num_bytes
from stages.publish.rolling import RollingTransport, each
from stages.publish.turn import PushPool, Turn, shielded

Beside = Callable[[str], Sequence[int]]
"""Which rank of the learner has the device of an engine's first, second, ... tensor-parallel rank,
by endpoint. Raises ConfigError for an engine that shares no devices with the learner, or is on
another machine."""


class TensorTransport(RollingTransport):
    """See WeightTransport and RollingTransport.

    The staged weights are the buckets that the learner's rank 0 holds; all engines of a wave are
    lent the same one at the same time."""

    def __init__(
        self,
        pool: PushPool,
        lender: WeightLender,
        cluster: ClusterConfig,
        beside: Beside,
        *,
        headers: Mapping[str, str] | None = None,
        time: TimeSource | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(pool, cluster, headers=headers, time=time, sleep=sleep)
        self._lender, self._beside = lender, beside
        self._metas: list[list[TensorMeta]] = []

    async def close(self) -> None:
        with contextlib.suppress(SlipstreamError):  # the learner is dead, and its memory gone
            await self._lender.close()
        await super().close()

    async def _stage(self, version: int) -> int:
        for endpoint in self._pool.endpoints:
            self._beside(endpoint)  # refused before anything is made for it
        self._metas = await self._lender.gather(self._cluster.update_weight_buffer_size)
        return sum(num_bytes(meta) for bucket in self._metas for meta in bucket)

    async def _load(self, team: Sequence[Turn], version: int) -> None:
        """Lends the buckets, one after the other. Only the last one carries the version: until then
        the engines are paused and have none. An engine that fails is lent no more; the others do
        not depend on it."""
        await each(team, Turn.open)
        for i in range(len(self._metas)):
            members = [turn for turn in team if turn.error is None]
            if not members:
                return
            label = version if i == len(self._metas) - 1 else None
            await self._lend(members, i, label)
        await each([turn for turn in team if turn.error is None], Turn.close)

    async def _lend(self, members: Sequence[Turn], bucket: int, label: int | None) -> None:
        ranks = {turn.endpoint: self._beside(turn.endpoint) for turn in members}
        readers = Counter(rank for those in ranks.values() for rank in those)
        try:
            handles = await self._lender.lend(bucket, self._metas[bucket], readers)
            stacks = {rank: list(told) for rank, told in handles.items()}
            bodies = {
                endpoint: tensor_body([stacks[rank].pop() for rank in those], label)
                for endpoint, those in ranks.items()
            }
            for turn in members:
                turn.mixed = True
            await each(members, lambda turn: turn.control.borrow(bodies[turn.endpoint]))
        except WeightSyncError as error:  # the learner's side
            for turn in members:
                turn.error = error
        finally:
            with contextlib.suppress(SlipstreamError):  # what is wrong has been said
                await shielded(self._lender.take_back(readers))


def tensor_body(handles: Sequence[bytes], version: int | None) -> bytes:
    """What one engine is told of one bucket: a handle for each of its tensor-parallel ranks. See
    `bucket_body`."""
    body: dict[str, Any] = {
        "serialized_named_tensors": [base64.b64encode(handle).decode() for handle in handles],
        "load_format": "flattened_bucket",
        "flush_cache": False,
    }
    if version is not None:
        body["weight_version"] = str(version)
    return json.dumps(body).encode()
