"""Weights by broadcast from the learner, with gloo on a CPU and NCCL on GPUs: one broadcast of a
bucket reaches all engines of a wave."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence

from configs.schema import ClusterConfig
from pipeline.core.errors import WeightSyncError
from pipeline.core.protocols import WeightSender
from pipeline.core.time import TimeSource
from stages.publish.buckets import TensorMeta
from stages.publish.control import settle
from stages.publish.groups import WaveGroups
from stages.publish.rolling import RollingTransport
from stages.publish.turn import PushPool, Turn


class DistributedTransport(RollingTransport):
    """See WeightTransport and RollingTransport.

    The staged weights are the buckets that the sender holds.
    """

    def __init__(
        self,
        pool: PushPool,
        sender: WeightSender,
        cluster: ClusterConfig,
        *,
        backend: str = "gloo",
        headers: Mapping[str, str] | None = None,
        time: TimeSource | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(pool, cluster, headers=headers, time=time, sleep=sleep)
        self._sender = sender
        self._metas: list[list[TensorMeta]] = []
        self._groups = WaveGroups(
            sender,
            backend=backend,
            ranks_per_engine=cluster.rollout_num_gpus_per_engine,
            control=self._control,
            condemn=pool.condemn,
        )

    async def close(self) -> None:
        await self._groups.close()
        await super().close()

    async def _stage(self, version: int) -> int:
        self._metas = await self._sender.prepare(self._cluster.update_weight_buffer_size)
        return sum(_num_bytes(meta) for bucket in self._metas for meta in bucket)

    async def _connect(self, endpoints: Sequence[str]) -> dict[str, WeightSyncError]:
        """Forms the group of the wave, when there is none."""
        return await self._groups.form(endpoints)

    async def _load(self, team: Sequence[Turn], version: int) -> None:
        """Sends the buckets. Only the last one carries the version: until then the engines are
        paused and have none."""
        refused = await settle({turn.endpoint: turn.open() for turn in team})
        for turn in team:
            turn.error = refused.get(turn.endpoint)
        if refused:  # nothing is sent yet: the others need a group without these
            return
        members = [turn.endpoint for turn in team]
        for i, metas in enumerate(self._metas):
            for turn in team:
                turn.mixed = True
            label = version if i == len(self._metas) - 1 else None
            broken = await self._groups.broadcast(members, i, metas, label)
            if broken is not None:
                for turn in team:
                    turn.error = broken.reason(turn.endpoint)
                return
        failed = await settle({turn.endpoint: turn.close() for turn in team})
        for turn in team:
            turn.error = failed.get(turn.endpoint)

    async def _forget(self, endpoint: str) -> None:
        await self._groups.forget(endpoint)


def _num_bytes(meta: TensorMeta) -> int:
    import torch

    _, dtype, shape = meta
    return math.prod(shape) * getattr(torch, dtype).itemsize
