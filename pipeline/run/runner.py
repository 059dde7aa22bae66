"""One run: the verbs that train_async.py speaks, over the parts that pipeline.wiring put together.

The learner's loop is the only finite one. Consumes: rollouts of the buffer. Waits for: groups whose
deadline is due, and, where the next push is due or a snapshot is saved, for the push under way.
Unblocked by: the producer's puts, and the engines' confirmations."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from pipeline.core.errors import LearnerError, LearnerLostError
from pipeline.core.types import Group, PushResult, StepResult, TrainBatch
from pipeline.run.disk_full import disk_full_error
from pipeline.run.evaluations import Evaluations
from pipeline.run.parts import Parts
from pipeline.run.pushes import Pushes
from pipeline.run.restores import Restores
from pipeline.run.shutdown import Stop, StopRequested
from pipeline.run.snapshots import Snapshots

logger = logging.getLogger(__name__)


class Runner:
    """`async with runner, runner.producing(): for rollout_id in runner.rollouts(): ...`"""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self._stop = Stop(parts.kill_now)
        self._beside: asyncio.TaskGroup | None = None
        self._pushes = Pushes(
            transport=parts.transport,
            clock=parts.clock,
            buffer=parts.buffer,
            recorder=parts.recorder,
            watchdog=parts.watchdog,
            overlap=parts.config.overlaps_pushes,
            lull=self._lull if parts.config.async_.fixed_staleness else None,
            outlives_learner=parts.config.cluster.use_fault_tolerance,
        )
        self._evaluations = Evaluations(parts, self._pushes)
        self._snapshots = Snapshots(parts, self._pushes)
        self._restores = Restores(parts, self._pushes, self._snapshots)
        self._closed = False
        self.interrupted_by: int | None = None  # signal number

    # -- the life of a run -------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._stop.install()
        self._p.lookout.start()
        try:
            with self._p.watchdog.stage("start"):
                await self._stop.or_result(self._p.start)
            self._p.began()
        except BaseException as e:
            if isinstance(e, StopRequested):
                self.interrupted_by = self._stop.signal_number
            await self._close_unbegun()
            raise
        self._snapshots.begun()
        self._p.recorder.started()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        """Saves what an interrupted run has, closes everything, and leaves summary and report
        behind, whatever happened."""
        stopped = error is not None and _is_stop(error)
        failures = [error] if error is not None and not stopped else []
        for part in (lambda: self._wind_down(stopped, error), self._close):
            try:
                await part()
            except BaseException as e:
                failures.append(e)
        full = disk_full_error(failures, self._p.run_dir, self._p.checkpoints) if failures else None
        if full is not None:
            raise full from None
        if failures and failures[-1] is not error:
            raise failures[-1]
        return stopped

    async def _wind_down(self, stopped: bool, error: BaseException | None) -> None:
        """Saves what is trained and can be saved; what goes wrong is logged."""
        if stopped:
            self.interrupted_by = self._stop.signal_number
            if self._restores.under_way:
                logger.warning("the learner was being restored: what was not saved is not trained")
            else:
                await self._snapshots.now(wait=True)
        elif error is not None:
            # the terminal is told at the very end, when it is free again
            for cause in leaves(error):
                logger.error(
                    "the run ends with %s: %s",
                    type(cause).__name__,
                    cause,
                    exc_info=cause,
                    extra={"file_only": True},
                )
            await self._snapshots.commit_what_is_left()

    async def _close(self) -> None:
        """Closes everything. It is shielded, so that a cancelled run leaves no process behind
        either."""
        try:
            await asyncio.shield(asyncio.ensure_future(self._close_parts()))
        finally:
            self._p.lookout.stop()
            self._closed = True
            self._p.recorder.finish(interrupted=self.interrupted_by is not None)
            self._stop.uninstall()

    async def _close_unbegun(self) -> None:
        """Closes a run that never began, and leaves nothing of it behind."""
        try:
            await asyncio.shield(asyncio.ensure_future(self._close_parts()))
        finally:
            self._p.lookout.stop()
            self._closed = True
            self._p.abandon()
            self._stop.uninstall()

    async def _close_parts(self) -> None:
        with self._p.watchdog.stage("close"):
            await self._p.close()

    @asynccontextmanager
    async def producing(self) -> AsyncIterator[None]:
        """Runs the producer (and evaluations) as tasks beside the learner's loop. A producer that
        fails stops the run with its cause."""
        async with asyncio.TaskGroup() as self._beside:
            producer = self._beside.create_task(self._produce())
            try:
                yield
            except StopRequested:  # what is saved then has the push
                await self._pushes.through()
                raise
            await self._pushes.through()
            with self._p.watchdog.stage("evaluations"):
                await self._stop.or_result(self._evaluations.through)
            producer.cancel()

    async def _produce(self) -> None:
        await self._p.producer.run()
        raise AssertionError("the producer returned: only cancellation may end it")

    def end_now(self) -> None:
        """Ends whatever is still up, at once: the event loop is gone, and may have gone too
        early."""
        if not self._closed:
            self._p.kill_now()

    # -- the verbs ---------------------------------------------------------------------------------

    def rollouts(self) -> Iterator[int]:
        """Ids of the rollouts still to train; a resumed run goes on where its snapshot was."""
        if self._p.clock.num_trained == 0 and not self._p.config.eval.skip_eval_before_train:
            self._evaluate_now(0)
        while not self._p.clock.finished:
            yield self._p.clock.num_trained

    @asynccontextmanager
    async def surviving(self) -> AsyncIterator[None]:
        """With --use-fault-tolerance: where the learner is lost in here, it is restored, and what
        was under way is given up. `rollouts` goes on where the restored learner is."""
        try:
            yield
        except LearnerLostError as error:
            if not self._restores.survives(error):
                raise
            lost = error
            await self._stop.or_result(lambda: self._restores.restore(lost))

    async def take(self, rollout_id: int) -> list[Group]:
        with self._p.watchdog.stage("take"):
            groups = await self._stop.or_result(
                lambda: self._pushes.unless_lost(self._p.buffer.take(rollout_id))
            )
        if self._p.save_rollout is not None:
            self._p.save_rollout(rollout_id, self._p.clock.version_at(rollout_id), groups)
        return groups

    def batch(self, rollout_id: int, groups: Sequence[Group]) -> TrainBatch:
        with self._p.recorder.trainer_busy():
            return self._p.make_batch(rollout_id, self._p.clock.version_at(rollout_id), groups)

    async def learn(self, batch: TrainBatch) -> StepResult:
        """Takes one rollout's optimizer steps.

        A refused step stops the run; what it was given is kept for a post-mortem. Raises
        LearnerLostError for `surviving`."""
        with self._p.recorder.trainer_busy(), self._p.watchdog.stage("step"):
            try:
                result = await self._p.learner.step(batch)
            except LearnerError as e:
                if self._restores.survives(e):
                    raise
                raise LearnerError(f"{e}. The batch is kept in {self._p.save_batch(batch)}") from e
        self._p.clock.trained(batch.rollout_id)
        self._p.watchdog.trained()
        return result

    async def push(self, rollout_id: int) -> PushResult | None:
        """Where a push is due: returns when the weights are staged, and engines are given them
        beside this loop; see Pushes."""
        assert self._beside is not None, "push() outside producing()"
        return await self._pushes.push(rollout_id, self._beside)

    def record(
        self,
        rollout_id: int,
        groups: Sequence[Group],
        batch: TrainBatch,
        result: StepResult,
        pushed: PushResult | None,
    ) -> None:
        self._p.producer.forget()
        self._p.recorder.trained(rollout_id, groups, batch, result)
        if pushed:
            self._p.recorder.pushed(rollout_id, pushed)

    def evaluate(self, rollout_id: int) -> None:
        """Starts an evaluation where one is due; see Evaluations."""
        if self._evaluations.due_after(rollout_id):
            self._evaluate_now(rollout_id + 1)

    def _lull(self) -> Awaitable[None]:
        """No group generates any more, and no evaluation that is under way as this is called: those
        begun later wait for the push that waits for this."""
        evaluations = self._evaluations.under_way

        async def nothing_under_way() -> None:
            await self._p.buffer.settled()
            if evaluations:
                await asyncio.wait(evaluations)

        return nothing_under_way()

    def _evaluate_now(self, num_trained: int) -> None:
        assert self._beside is not None, "evaluate() outside producing()"
        self._evaluations.start(num_trained, self._beside)

    async def save(self, rollout_id: int) -> None:
        """Saves where a checkpoint is due.

        With --async-save it is committed by a later rollout's call, and the last one before this
        returns."""
        await self._snapshots.after(rollout_id)


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions in a (nested) group, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for e in error.exceptions for leaf in leaves(e)]
    return [error]


def _is_stop(error: BaseException) -> bool:
    return all(
        isinstance(e, StopRequested | asyncio.CancelledError) for e in leaves(error)
    ) and any(isinstance(e, StopRequested) for e in leaves(error))
