"""Only what has changed goes to the engines' nodes, and is applied there to a copy of the weights
from which the engines load (--weight-transport delta)."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from configs.schema import ClusterConfig
from pipeline.core.errors import SlipstreamError, WeightSyncError
from pipeline.core.protocols import WeightSender
from pipeline.core.time import TimeSource
from pipeline.core.types import PushResult, StagedDelta
from stages.publish import delta_mirror
from stages.publish.control import TRANSFER_SECONDS, settle
from stages.publish.disk import DiskTransport
from stages.publish.turn import PushPool

logger = logging.getLogger(__name__)


class NodesPool(PushPool, Protocol):
    """A pool that can have something done on the nodes of an engine."""

    async def on_nodes(self, endpoint: str, work: Callable[..., Any], *args: Any) -> list[Any]:
        """Calls a function of a module in a process on every node of the engine, that lives as long
        as the engine or longer; returns the results. Raises what it raises, or EngineError."""


class DeltaTransport(DiskTransport):
    """See WeightTransport and RollingTransport.

    What is staged is a file of changes, made from the bits that the learner kept of the push
    before. Nodes apply it to their copy while their engines still decode; a paused engine then
    loads the copy, as one loads a folder. A copy that is missing, holds another state, or does not
    come out as it should is given all weights, in a file that is written when the first such copy
    is found. An engine that restarts loads its node's copy, once that is found intact."""

    def __init__(
        self,
        pool: NodesPool,
        sender: WeightSender,
        cluster: ClusterConfig,
        folder: Path,
        *,
        headers: Mapping[str, str] | None = None,
        time: TimeSource | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`folder`: for the files; see DiskTransport."""
        super().__init__(pool, sender, cluster, folder, headers=headers, time=time, sleep=sleep)
        self._nodes = pool
        where = cluster.update_weight_local_checkpoint_dir or tempfile.gettempdir()
        self._copy = Path(where).absolute() / f"{delta_mirror.PREFIX}{uuid.uuid4().hex}"
        self._current = self._copy  # what engines load
        self._delta: StagedDelta | None = None
        self._file: Path | None = None  # of what is staged
        self._full_file: Path | None = None  # the same in full, if anybody needed it
        self._writing_full = asyncio.Lock()
        self._doubted: set[str] = set()  # engines whose nodes' copies are to be looked at
        self._seen: set[str] = set()  # engines whose nodes may have a copy
        self._num_full = 0

    async def deliver(self) -> PushResult:
        result = await super().deliver()
        return dataclasses.replace(result, num_bytes=self._num_bytes, num_full=self._num_full)

    async def close(self) -> None:
        for endpoint, error in (await settle({e: self._drop(e) for e in self._seen})).items():
            logger.debug("%s: its node's copy of the weights is not removed: %s", endpoint, error)
        await super().close()

    async def _stage(self, version: int) -> int:
        self._delta, self._full_file, self._num_full = None, None, 0
        self._file = self._folder / f"version-{version}.delta"
        try:
            await asyncio.to_thread(_only, self._folder, ())
        except OSError as error:
            raise WeightSyncError(
                f"{self._folder} cannot take the weights of version {version}: {error}"
            ) from error
        self._delta = await self._sender.export_delta(self._file)
        return self._delta.num_bytes

    async def _connect(self, endpoints: Sequence[str]) -> dict[str, WeightSyncError]:
        """Brings the copies of these engines' nodes to what is staged."""
        return await settle({endpoint: self._bring(endpoint) for endpoint in endpoints})

    async def _forget(self, endpoint: str) -> None:
        self._doubted.add(endpoint)

    async def _all_delivered(self) -> None:
        """Files stay until the next push: an engine that joins may need them."""

    async def _bring(self, endpoint: str) -> None:
        assert self._delta is not None and self._file is not None
        self._seen.add(endpoint)
        try:
            found = await self._apply(endpoint, self._file)
        except WeightSyncError as error:
            logger.warning("%s is sent all weights: %s", endpoint, error)
            try:
                found = await self._apply(endpoint, await self._in_full())
            except WeightSyncError:
                self._full_file = None  # if it was that, the next attempt writes another
                raise
        self._doubted.discard(endpoint)
        self._num_full += found.count("full")

    async def _apply(self, endpoint: str, file: Path) -> list[delta_mirror.Brought]:
        assert self._delta is not None
        doubted = endpoint in self._doubted
        return await self._on_nodes(
            endpoint, delta_mirror.bring, self._copy, file, self._delta.reached, doubted
        )

    async def _in_full(self) -> Path:
        async with self._writing_full:
            if self._full_file is None:
                assert self._delta is not None and self._file is not None
                file = self._file.with_suffix(".full")
                self._num_bytes += await self._sender.export_all(file, self._delta.reached)
                self._full_file = file
            return self._full_file

    async def _drop(self, endpoint: str) -> None:
        await self._on_nodes(endpoint, delta_mirror.drop, self._copy)

    async def _on_nodes(self, endpoint: str, work: Callable[..., Any], *args: Any) -> list[Any]:
        try:
            async with asyncio.timeout(TRANSFER_SECONDS):
                return await self._nodes.on_nodes(endpoint, work, *args)
        except TimeoutError:
            raise WeightSyncError(
                f"the nodes of {endpoint} gave no answer in {TRANSFER_SECONDS:g} s"
            ) from None
        except WeightSyncError:
            raise
        except SlipstreamError as error:
            raise WeightSyncError(f"{endpoint}: {error}") from error


def _only(folder: Path, kept: Sequence[Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path not in kept:
            path.unlink()
