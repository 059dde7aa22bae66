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
from typing import Any, TypeVar

from pipeline.core.errors import LearnerLostError
from pipeline.core.protocols import Buffer, WeightTransport
from pipeline.core.types import PushResult
from pipeline.run.recorder import Recorder
from pipeline.run.watchdog import Watchdog
from pipeline.schedule.clock import RolloutClock

T = TypeVar("T")
# for a push to end by itself when the learner is lost: one by way of a folder needs it no more
SETTLE_SECONDS = 20.0


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
        outlives_learner: bool = False,
    ) -> None:
        """`lull`: called at every push, then awaited before an engine is given anything.
        `outlives_learner`: a learner that is lost while engines are given its weights ends the
        push, and not the run."""
        self._transport, self._clock, self._buffer = transport, clock, buffer
        self._recorder, self._watchdog, self._overlap = recorder, watchdog, overlap
        self._lull, self._outlives_learner = lull, outlives_learner
        self.under_way: asyncio.Task[None] | None = None
        self._begun = clock.policy_version  # the version of the last push that was begun
        self._lost: asyncio.Future[LearnerLostError] | None = None

    @property
    def highest_version(self) -> int:
        """That any engine has, or was about to be given."""
        return max(self._begun, self._clock.policy_version)

    async def push(self, rollout_id: int, beside: asyncio.TaskGroup) -> PushResult | None:
        """The push after this rollout, where one is due. Returns None when the weights are staged;
        engines get them as a task of `beside`, whose failure is the group's. Without overlap, or
        where nothing was copied, it returns the push, when it is complete."""
        if not self._clock.push_due(rollout_id):
            return None
        began = self._recorder.wall_seconds
        await self.through()
        version = self._clock.policy_version + 1
        self._begin(version)
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
        done, self.under_way = self.under_way, None
        done.result()
        if self._lost is not None and self._lost.done():
            raise self._lost.result()

    async def unless_lost(self, wait: Awaitable[T]) -> T:
        """The result of `wait`, which is given up when the push under way finds the learner
        lost."""
        task = asyncio.ensure_future(wait)
        lost = self._loss()
        either: set[asyncio.Future[Any]] = {task, lost}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise lost.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
                if not task.cancelled():
                    task.exception()  # of what failed as it was given up: seen

    async def call_off(self) -> None:
        """The learner is lost: ends the push under way, with every engine on whole weights or
        started again."""
        self._lost = None
        if self.under_way is None:
            return
        await asyncio.wait({self.under_way}, timeout=SETTLE_SECONDS)
        self.under_way.cancel()
        await asyncio.wait({self.under_way})
        self.under_way, self._lost = None, None

    async def restored(self, version: int) -> PushResult:
        """Gives every engine the restored learner's weights. The clock does not count this push: it
        is about to go back."""
        self._begin(version)
        await self._transport.stage(version)
        return await self._transport.deliver()

    def _begin(self, version: int) -> None:
        self._buffer.pushing(version)
        self._begun = version

    def _loss(self) -> asyncio.Future[LearnerLostError]:
        self._lost = self._lost or asyncio.get_running_loop().create_future()
        return self._lost

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
        try:
            with self._watchdog.beside("push", rollout_id, "deliver"):
                pushed = await self._deliver(lull)
        except LearnerLostError as error:
            if not self._outlives_learner:
                raise
            if not self._loss().done():
                self._loss().set_result(error)
            return
        self._recorder.pushed(rollout_id, replace(pushed, trainer_seconds=trainer_seconds))
