"""Simulated engines in another process than the pool's: each process has some of every engine's
capacity, and does to them what the pool's owner says."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from configs.schema import MockConfig
from pipeline.core.time import MonotonicTime, TimeSource
from stages.engine.mock import MockEngine, Sleep
from stages.engine.remote_pool import RemotePool
from stages.engine.view import EngineView


class MockRemotePool(RemotePool):
    """An engine that is not open stands still, unless it is leaving; opened, it goes on with its
    new version."""

    def __init__(
        self,
        *,
        config: MockConfig,
        num_processes: int,
        concurrency: int,
        time: TimeSource | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`num_processes`: that share the engines."""
        super().__init__(concurrency=concurrency)
        slots = config.mock_max_running_requests
        self._config = replace(
            config, mock_max_running_requests=slots and max(1, slots // num_processes)
        )
        self._time, self._sleep = time or MonotonicTime(), sleep
        self.engines: dict[str, MockEngine] = {}

    def _changes(self, before: EngineView, now: EngineView) -> None:
        engine = self.engines.get(now.endpoint)
        if engine is None:
            number = int(now.endpoint.rpartition("/")[2])
            engine = MockEngine(number, self._config, self._time, self._sleep)
            self.engines[now.endpoint] = engine
        if now.lost is not None:
            engine.kill()
        elif now.is_open or now.is_leaving:
            engine.resume(now.version)
        else:
            engine.pause()

    def _ended(self, endpoint: str) -> None:
        if (engine := self.engines.pop(endpoint, None)) is not None:
            engine.kill()
