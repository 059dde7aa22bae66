"""Weights by way of a folder that learner and engines share: slower than a broadcast, and
independent of process groups."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from configs.schema import ClusterConfig
from pipeline.core.errors import WeightSyncError
from pipeline.core.protocols import WeightSender
from pipeline.core.time import TimeSource
from stages.publish.control import settle
from stages.publish.rolling import RollingTransport
from stages.publish.turn import PushPool, Turn

# SGLang's answers when it has not begun to load; any other failure may have overwritten some of the
# old weights.
NOT_BEGUN = ("Failed to get weights iterator", "Failed to get model loader")


class DiskTransport(RollingTransport):
    """See WeightTransport and RollingTransport.

    The staged weights are a folder, kept until the next push has arrived.
    """

    def __init__(
        self,
        pool: PushPool,
        sender: WeightSender,
        cluster: ClusterConfig,
        folder: Path,
        *,
        headers: Mapping[str, str] | None = None,
        time: TimeSource | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`folder` becomes this transport's own: what lies in it is removed."""
        super().__init__(pool, cluster, headers=headers, time=time, sleep=sleep)
        self._sender, self._folder = sender, folder.absolute()
        self._current: Path | None = None

    async def close(self) -> None:
        await super().close()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _stage(self, version: int) -> int:
        target = self._folder / f"version-{version}"
        try:
            await asyncio.to_thread(_fresh, target)
        except OSError as error:
            raise WeightSyncError(
                f"no folder for the weights of version {version} could be made: {error}"
            ) from error
        await self._sender.export_hf(target)
        self._current = target
        return await asyncio.to_thread(_num_bytes, target)

    async def _load(self, team: Sequence[Turn], version: int) -> None:
        assert self._current is not None
        for turn in team:
            turn.mixed = True
        failed = await settle(
            {turn.endpoint: turn.control.load(self._current, version) for turn in team}
        )
        for turn in team:
            turn.error = failed.get(turn.endpoint)
            turn.mixed = not any(text in str(turn.error) for text in NOT_BEGUN)

    async def _all_delivered(self) -> None:
        await asyncio.to_thread(_keep_only, self._folder, self._current)


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _keep_only(folder: Path, kept: Path | None) -> None:
    for path in folder.iterdir():
        if path != kept:
            shutil.rmtree(path)


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
