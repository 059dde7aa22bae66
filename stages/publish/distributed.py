"""Weights by broadcast from the learner, with gloo on a CPU and NCCL on GPUs: one broadcast of a
bucket reaches all engines of a wave. The learner's ranks that send take turns: an engine loads one
bucket at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from configs.schema import ClusterConfig
from pipeline.core.errors import WeightSyncError
from pipeline.core.protocols import WeightSender
from pipeline.core.time import TimeSource
from pipeline.core.types import PreparedWeights
from stages.publish.buckets import num_bytes
from stages.publish.control import settle
from stages.publish.groups import WaveGroups
from stages.publish.rolling import RollingTransport
from stages.publish.turn import PushPool, Turn

logger = logging.getLogger(__name__)


class DistributedTransport(RollingTransport):
    """See WeightTransport and RollingTransport.

    The staged weights are the buckets that the senders hold; where these do not fit into
    --push-staging-bytes, the learner's own weights, gathered again for every wave.
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
        self._weights = PreparedWeights(buckets={})
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
        cluster, were_copied = self._cluster, self._weights.copied
        self._weights = await self._sender.prepare(
            cluster.update_weight_buffer_size, cluster.push_staging_bytes
        )
        sizes = [
            sum(num_bytes(meta) for bucket in buckets for meta in bucket)
            for buckets in self._weights.buckets.values()
        ]
        if were_copied and not self._weights.copied:
            logger.warning(
                "the learner waits for every push to end: a rank's copy of its weights would take"
                " %d bytes, and --push-staging-bytes is %d",
                max(sizes),
                cluster.push_staging_bytes,
            )
        return sum(sizes)

    @property
    def _copied(self) -> bool:
        return self._weights.copied

    async def _connect(self, endpoints: Sequence[str]) -> dict[str, WeightSyncError]:
        """Forms the groups of the wave, when there are none."""
        return await self._groups.form(endpoints, self._weights.buckets)

    async def _load(self, team: Sequence[Turn], version: int) -> None:
        try:
            async with self._sender.sending():
                await self._send(team, version)
        except WeightSyncError as error:
            for turn in team:
                turn.error = turn.error or error

    async def _send(self, team: Sequence[Turn], version: int) -> None:
        """Sends the buckets. Only the last one carries the version: until then the engines are
        paused and have none."""
        refused = await settle({turn.endpoint: turn.open() for turn in team})
        for turn in team:
            turn.error = refused.get(turn.endpoint)
        if refused:  # nothing is sent yet: the others need a group without these
            return
        members = [turn.endpoint for turn in team]
        buckets = [
            (sender, i, metas)
            for sender, its in self._weights.buckets.items()
            for i, metas in enumerate(its)
        ]
        for sent, (sender, i, metas) in enumerate(buckets, 1):
            for turn in team:
                turn.mixed = True
            label = version if sent == len(buckets) else None
            broken = await self._groups.broadcast(members, sender, i, metas, label)
            if broken is not None:
                for turn in team:
                    turn.error = broken.reason(turn.endpoint)
                return
        failed = await settle({turn.endpoint: turn.close() for turn in team})
        for turn in team:
            turn.error = failed.get(turn.endpoint)

    async def _forget(self, endpoint: str) -> None:
        await self._groups.forget(endpoint)

    async def _part(self, endpoint: str) -> None:
        await self._groups.part(endpoint)

    async def _forget_sender(self) -> None:
        await self._groups.forget_sender()
