"""Learner and engines that share devices take turns: the one that works has the memory, the other
is on the host.

Around a step, a save and a load the engines leave and the learner comes in; afterwards it is the
other way round. A push needs the learner's weights beside the engines, and brings them in for its
time (stages/learn/megatron/offload.py)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from pipeline.core.errors import LearnerLostError
from pipeline.core.protocols import Learner
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import StepResult, TrainBatch


class OffloadableLearner(Learner, Protocol):
    """A learner that can leave its devices."""

    async def offload(self) -> None: ...
    async def onload(self) -> None: ...


class EngineSwitch(Protocol):
    """Engines that can leave their devices."""

    async def release(self) -> None: ...
    async def resume(self) -> None: ...


class TurnTaking:
    """`Learner`. `leaves` None (without --offload-train), `engines` None (without
    --offload-rollout): that side stays where it is."""

    def __init__(
        self,
        learner: Learner,
        *,
        leaves: OffloadableLearner | None,
        engines: EngineSwitch | None,
        time: TimeSource | None = None,
    ) -> None:
        """`leaves`: the same learner, where it gives its devices up between turns."""
        self._learner, self._leaves, self._engines = learner, leaves, engines
        self._time = time or MonotonicTime()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._engines is not None:
            await self._engines.release()
        if self._leaves is not None:
            await self._leaves.onload()
        try:
            yield
        except BaseException:  # after a refused step, and where the learner is lost, too
            with contextlib.suppress(LearnerLostError):
                await self.end_turn()
            raise
        await self.end_turn()

    async def end_turn(self) -> None:
        """The learner leaves, and the engines come back."""
        try:
            if self._leaves is not None:
                await self._leaves.offload()
        finally:
            if self._engines is not None:
                await self._engines.resume()

    async def step(self, batch: TrainBatch) -> StepResult:
        """The learner's step. Its metrics have `turn_seconds`: how long handing the devices over
        took."""
        began = self._time.now()
        async with self._turn():
            in_between = self._time.now()
            result = await self._learner.step(batch)
            taken = self._time.now() - in_between
        return StepResult(
            metrics={**result.metrics, "turn_seconds": self._time.now() - began - taken}
        )

    async def save(self, path: Path, hf: Path | None) -> None:
        async with self._turn():
            await self._learner.save(path, hf)

    async def saved(self, *, wait: bool) -> bool:
        return await self._learner.saved(wait=wait)

    async def load(self, path: Path) -> None:
        await self._learner.load(path)

    async def close(self) -> None:
        await self._learner.close()
