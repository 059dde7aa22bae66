"""A weight push without weights: every engine is paused for a while and then serves the next
version."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from configs.schema import MockConfig
from pipeline.core.protocols import EnginePool
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import PushResult


class GatedPool(EnginePool, Protocol):
    """A pool whose engines can be taken out of service for a push."""

    def begin_push(self, endpoint: str) -> None: ...
    def end_push(self, endpoint: str, version: int | None) -> None: ...


class MockTransport:
    """`WeightTransport` that visits one engine after the other, for `mock_push_seconds` each."""

    def __init__(
        self,
        pool: GatedPool,
        config: MockConfig,
        *,
        time: TimeSource | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._pool, self._seconds = pool, config.mock_push_seconds
        self._time, self._sleep = time or MonotonicTime(), sleep

    async def push(self, policy_version: int) -> PushResult:
        began, stalls = self._time.now(), []
        for endpoint in self._pool.endpoints:
            paused = self._time.now()
            self._pool.begin_push(endpoint)
            confirmed = None
            try:
                await self._sleep(self._seconds)
                confirmed = policy_version
            finally:  # a cancelled push leaves no engine paused
                self._pool.end_push(endpoint, confirmed)
            stalls.append(self._time.now() - paused)
        return PushResult(
            policy_version=policy_version,
            seconds=self._time.now() - began,
            stall_seconds=max(stalls),
            num_bytes=0,
            num_engines=len(stalls),
        )

    async def close(self) -> None:
        return None
