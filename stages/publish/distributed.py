"""Weights by broadcast from the learner, with gloo on a CPU and NCCL on GPUs; every engine has a
process group of its own with the learner."""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import Awaitable, Callable, Mapping

from configs.schema import ClusterConfig
from pipeline.core.errors import SlipstreamError, WeightSyncError
from pipeline.core.ports import free_port
from pipeline.core.protocols import WeightSender
from pipeline.core.time import TimeSource
from stages.publish.buckets import TensorMeta
from stages.publish.control import AnsweredError, EngineControl
from stages.publish.rolling import PushPool, RefusedError, RollingTransport, shielded

logger = logging.getLogger(__name__)


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
        sender_address: str = "127.0.0.1",
        headers: Mapping[str, str] | None = None,
        time: TimeSource | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`sender_address`: the address, as the engines reach it, of the node where the learner's
        rank 0 runs."""
        super().__init__(pool, cluster, headers=headers, time=time, sleep=sleep)
        self._sender, self._backend, self._address = sender, backend, sender_address
        self._metas: list[list[TensorMeta]] = []
        self._groups: dict[str, str] = {}  # endpoint -> name of its group

    async def close(self) -> None:
        """Leaves the groups, as far as the learner still lives.

        The engines' sides end with the engines."""
        failed = []
        for endpoint in list(self._groups):
            try:
                await self._forget(endpoint)
            except SlipstreamError as error:
                failed.append(str(error))
        if failed:
            more = f" (and {len(failed) - 3} more)" if len(failed) > 3 else ""
            logger.warning("closing the weight transport: %s%s", "; ".join(failed[:3]), more)
        await super().close()

    async def _stage(self, version: int) -> int:
        self._metas = await self._sender.prepare(self._cluster.update_weight_buffer_size)
        return sum(_num_bytes(meta) for bucket in self._metas for meta in bucket)

    async def _connect(self, control: EngineControl) -> None:
        """Forms the engine's group, when it has none.

        This keeps the engine's scheduler for as long as the two sides need to meet."""
        if control.endpoint in self._groups:
            return
        name = f"slipstream-weights-{uuid.uuid4().hex}"
        port, world = free_port(), 1 + self._cluster.rollout_num_gpus_per_engine
        self._groups[control.endpoint] = name
        try:
            await _together(
                self._sender.join(name, self._address, port, world, self._backend),
                control.init_group(name, self._address, port, world, self._backend),
            )
        except BaseException as error:
            # its scheduler may wait for a group that never comes about
            if not isinstance(error, AnsweredError):
                self._pool.condemn(
                    control.endpoint,
                    "it was told to join a group that did not form"
                    f" ({error or type(error).__name__})",
                )
            await shielded(self._forget(control.endpoint))
            raise

    async def _load(self, control: EngineControl, version: int) -> None:
        """Sends the buckets. Only the last one carries the version: until then the engine is paused
        and has none."""
        group = self._groups[control.endpoint]
        try:
            await control.begin_update()
        except WeightSyncError as error:
            raise RefusedError(str(error)) from error
        for i, metas in enumerate(self._metas):
            label = version if i == len(self._metas) - 1 else None
            await _together(control.receive(group, metas, label), self._sender.broadcast(group, i))
        await control.end_update()

    async def _forget(self, endpoint: str) -> None:
        name = self._groups.pop(endpoint, None)
        if name is not None:
            await self._sender.leave(name)


async def _together(engine: Awaitable[None], learner: Awaitable[None]) -> None:
    """Both sides of one collective.

    Raises the first failure by itself, and does not wait for the side that is left alone.
    """

    async def run(side: Awaitable[None]) -> None:
        await side

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(run(engine))
            group.create_task(run(learner))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _num_bytes(meta: TensorMeta) -> int:
    import torch

    _, dtype, shape = meta
    return math.prod(shape) * getattr(torch, dtype).itemsize
