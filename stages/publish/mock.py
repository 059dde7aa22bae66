"""A weight push without weights: every engine is paused for a while and then serves the next
version."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from configs.schema import ClusterConfig, MockConfig
from pipeline.core.protocols import EnginePool
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import PushResult
from stages.publish.waves import split_waves


class GatedPool(EnginePool, Protocol):
    """A pool whose engines can be taken out of service for a push."""

    on_restart: Callable[[str], Awaitable[None]] | None

    def begin_push(self, endpoint: str) -> None: ...
    async def drained(self, endpoint: str) -> None: ...
    def pause(self, endpoint: str) -> None: ...
    def end_push(self, endpoint: str, version: int | None) -> None: ...


class MockTransport:
    """`WeightTransport` that visits one wave of engines after the other, for `mock_push_seconds`
    each: staging takes no time."""

    def __init__(
        self,
        pool: GatedPool,
        config: MockConfig,
        cluster: ClusterConfig,
        *,
        time: TimeSource | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._pool, self._seconds, self._cluster = pool, config.mock_push_seconds, cluster
        self._time, self._sleep = time or MonotonicTime(), sleep
        self._version: int | None = None  # that is staged
        self._began = 0.0
        pool.on_restart = self.resync

    async def stage(self, policy_version: int) -> bool:
        self._version, self._began = policy_version, self._time.now()
        return True

    async def resync(self, endpoint: str) -> None:
        """Brings one engine that has just joined to the version of the last push; before the first
        one it has the right one."""
        if self._version is not None:
            await self._update([endpoint])

    async def deliver(self) -> PushResult:
        assert self._version is not None, "deliver() before stage()"
        endpoints, stalls = self._pool.endpoints, [0.0]
        for wave in split_waves(endpoints, self._cluster.push_wave_fraction):
            stalls.append(await self._update(wave))
        return PushResult(
            policy_version=self._version,
            seconds=self._time.now() - self._began,
            stall_seconds=max(stalls),
            num_bytes=0,
            num_engines=len(endpoints),
        )

    async def push(self, policy_version: int) -> PushResult:
        """Stages and delivers."""
        await self.stage(policy_version)
        return await self.deliver()

    async def close(self) -> None:
        return None

    async def _update(self, wave: Sequence[str]) -> float:
        """Seconds for which the engines of the wave were paused."""
        confirmed = None
        for endpoint in wave:
            self._pool.begin_push(endpoint)
        try:
            if self._cluster.weight_update_mode == "drain":
                for endpoint in wave:
                    await self._pool.drained(endpoint)
            paused = self._time.now()
            for endpoint in wave:
                self._pool.pause(endpoint)
            await self._sleep(self._seconds)
            confirmed = self._version
        finally:  # a cancelled push leaves no engine paused
            for endpoint in wave:
                self._pool.end_push(endpoint, confirmed)
        return self._time.now() - paused
