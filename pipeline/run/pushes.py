"""Weight pushes beside the learner's loop, one at a time.

Staging is the learner's: its weights are copied between two steps. From then on engines are given
the copy, and the learner goes on, until the next push is due. A rollout is released when every
engine has confirmed the push after it, and not before (pipeline/schedule/clock.py), so groups are
as stale as they may be without overlap, and no staler.

In lockstep (--fixed-staleness) engines are given weights only when all that was admitted under the
weights before is complete, evaluations included: what is admitted between two pushes then is of one
version, whole, and a rollout K later is exactly K versions older than the learner."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from pipeline.core.protocols import Buffer, WeightTransport
from pipeline.core.types import PushResult
from pipeline.run.recorder import Recorder
from pipeline.run.watchdog import Watchdog
from pipeline.schedule.clock import RolloutClock


class Pushes:
    """Consumes: the learner's weights where a push is due. Waits for: the push before. Unblocked
    by: the engines' confirmations."""

    def __init__(
        self,
        *,
        transport: WeightTransport,
        clock: RolloutClock,
        buffer: Buffer,
        recorder: Recorder,
        watchdog: Watchdog,
        overlap: bool,
        lull: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`lull`: called at every push, then awaited before an engine is given anything."""
        self._transport, self._clock, self._buffer = transport, clock, buffer
        self._recorder, self._watchdog, self._overlap = recorder, watchdog, overlap
        self._lull = lull
        self.under_way: asyncio.Task[None] | None = None

    async def push(self, rollout_id: int, beside: asyncio.TaskGroup) -> PushResult | None:
        """The push after this rollout, where one is due. Returns None when the weights are staged;
        engines get them as a task of `beside`, whose failure is the group's. Without overlap, or
        where nothing was copied, it returns the push, when it is complete."""
        if not self._clock.push_due(rollout_id):
            return None
        began = self._recorder.wall_seconds
        await self.through()
        version = self._clock.policy_version + 1
        self._buffer.pushing(version)
        with self._recorder.trainer_busy(), self._watchdog.stage("push"):
            copied = await self._transport.stage(version)
            if not (self._overlap and copied):
                pushed = await self._deliver(self._begin_lull())
                return replace(pushed, trainer_seconds=self._recorder.wall_seconds - began)
        taken = self._recorder.wall_seconds - began
        self.under_way = beside.create_task(
            self._deliver_beside(rollout_id, taken, self._begin_lull())
        )
        return None

    async def through(self) -> None:
        """Waits for the push under way."""
        if self.under_way is None:
            return
        with self._watchdog.stage("push"):
            # when it fails, the group that it runs in cancels this wait, and ends with its error
            await asyncio.wait({self.under_way})
        self.under_way.result()
        self.under_way = None

    def _begin_lull(self) -> Awaitable[None] | None:
        return None if self._lull is None else self._lull()

    async def _deliver(self, lull: Awaitable[None] | None) -> PushResult:
        if lull is not None:
            await lull
        pushed = await self._transport.deliver()
        self._clock.pushed()
        return pushed

    async def _deliver_beside(
        self, rollout_id: int, trainer_seconds: float, lull: Awaitable[None] | None
    ) -> None:
        with self._watchdog.beside("push", rollout_id, "deliver"):
            pushed = await self._deliver(lull)
        self._recorder.pushed(rollout_id, replace(pushed, trainer_seconds=trainer_seconds))
