"""One run: the verbs that train_async.py speaks, over the parts that pipeline.wiring put together.

The learner's loop is the only finite one. Consumes: rollouts of the buffer. Waits for: groups whose
deadline is due, and, where the next push is due or a snapshot is saved, for the push under way.
Unblocked by: the producer's puts, and the engines' confirmations."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from configs.schema import Config
from pipeline.core.errors import LearnerError, SlipstreamError, UserFunctionError
from pipeline.core.protocols import Buffer, Learner, WeightTransport
from pipeline.core.types import EvalResult, Group, PushResult, StepResult, TrainBatch
from pipeline.run.disk_full import disk_full_error
from pipeline.run.lookout import Lookout
from pipeline.run.pushes import Pushes
from pipeline.run.recorder import Recorder
from pipeline.run.shutdown import Stop, StopRequested
from pipeline.run.snapshot import PendingSnapshot, begin_snapshot, commit_snapshot
from pipeline.run.watchdog import Watchdog
from pipeline.schedule.clock import RolloutClock

logger = logging.getLogger(__name__)


class EvaluationStage(Protocol):
    """Evaluates every data set once; its results carry the policy versions of their tokens."""

    async def evaluate(self, rollout_id: int) -> list[EvalResult]: ...


class Production(Protocol):
    """Fills the buffer for ever, beside the learner's loop."""

    async def run(self) -> None: ...
    def forget(self) -> None:
        """What is trained on need not be kept for a restart."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The concrete parts of one run, made by pipeline.wiring."""

    config: Config
    run_dir: Path
    checkpoints: Path
    clock: RolloutClock
    producer: Production
    buffer: Buffer
    learner: Learner
    transport: WeightTransport
    # (rollout_id, policy_version, groups)
    make_batch: Callable[[int, int, Sequence[Group]], TrainBatch]
    save_batch: Callable[[TrainBatch], Path]  # what a refused step was given, for a post-mortem
    # (rollout_id, policy_version, groups), of every take
    save_rollout: Callable[[int, int, Sequence[Group]], None] | None
    saves: bool  # are there weights to save?
    evaluator: EvaluationStage | None
    recorder: Recorder
    watchdog: Watchdog
    lookout: Lookout
    # engines and learner up, the learner's weights on every engine
    start: Callable[[], Awaitable[None]]
    began: Callable[[], None]  # engines and learner are up: the run's folder is there to stay
    abandon: Callable[[], None]  # they did not come up: as if it had never been asked for
    close: Callable[[], Awaitable[None]]  # everything down, from any state
    kill_now: Callable[[], None]  # the same, at once and synchronously


class Runner:
    """`async with runner, runner.producing(): for rollout_id in runner.rollouts(): ...`"""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self._stop = Stop(parts.kill_now)
        self._beside: asyncio.TaskGroup | None = None
        self._evaluations: set[asyncio.Task[None]] = set()
        self._pushes = Pushes(
            transport=parts.transport,
            clock=parts.clock,
            buffer=parts.buffer,
            recorder=parts.recorder,
            watchdog=parts.watchdog,
            overlap=parts.config.overlaps_pushes,
            lull=self._lull if parts.config.async_.fixed_staleness else None,
        )
        self._eval_order = asyncio.Lock()
        self._saved: int | None = None  # rollouts trained at the last snapshot
        self._pending: PendingSnapshot | None = None  # one that the learner may still be writing
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
            await self._save_now(wait=True)
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
            await self._commit_what_is_left()

    async def _commit_what_is_left(self) -> None:
        """A run that fails while a snapshot is being written keeps that snapshot, if its learner
        lives."""
        try:
            await self._commit(wait=True)
        except (SlipstreamError, OSError) as e:
            logger.warning("the snapshot under way is lost: %s", e)

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
                while self._evaluations:
                    await self._stop.or_result(lambda: asyncio.wait(set(self._evaluations)))
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

    async def take(self, rollout_id: int) -> list[Group]:
        with self._p.watchdog.stage("take"):
            groups = await self._stop.or_result(lambda: self._p.buffer.take(rollout_id))
        if self._p.save_rollout is not None:
            self._p.save_rollout(rollout_id, self._p.clock.version_at(rollout_id), groups)
        return groups

    def batch(self, rollout_id: int, groups: Sequence[Group]) -> TrainBatch:
        with self._p.recorder.trainer_busy():
            return self._p.make_batch(rollout_id, self._p.clock.version_at(rollout_id), groups)

    async def learn(self, batch: TrainBatch) -> StepResult:
        """Takes one rollout's optimizer steps.

        A refused step stops the run; what it was given is kept for a post-mortem."""
        with self._p.recorder.trainer_busy(), self._p.watchdog.stage("step"):
            try:
                result = await self._p.learner.step(batch)
            except LearnerError as e:
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
        """Starts an evaluation where one is due. Training goes on meanwhile; the results are
        recorded when they come."""
        interval = self._p.config.eval.eval_interval
        last = rollout_id + 1 == self._p.config.run.num_rollout
        if interval and ((rollout_id + 1) % interval == 0 or last):
            self._evaluate_now(rollout_id + 1)

    def _lull(self) -> Awaitable[None]:
        """No group generates any more, and no evaluation that is under way as this is called: those
        begun later wait for the push that waits for this."""
        evaluations = set(self._evaluations)

        async def nothing_under_way() -> None:
            await self._p.buffer.settled()
            if evaluations:
                await asyncio.wait(evaluations)

        return nothing_under_way()

    def _evaluate_now(self, num_trained: int) -> None:
        if self._p.evaluator is None:
            return
        assert self._beside is not None, "evaluate() outside producing()"
        task = self._beside.create_task(
            self._evaluate_in_order(num_trained, self._pushes.under_way)
        )
        self._evaluations.add(task)
        task.add_done_callback(self._evaluations.discard)

    async def _evaluate_in_order(self, num_trained: int, push: asyncio.Task[None] | None) -> None:
        """With a push under way, the weights to evaluate are those that it brings."""
        assert self._p.evaluator is not None
        if push is not None:
            await asyncio.wait({push})
        if self._eval_order.locked():
            logger.warning(
                "the evaluation after %d rollouts has to wait: %s",
                num_trained,
                "; ".join(map(str, self._p.watchdog.under_way("evaluation"))),
            )
        async with self._eval_order:
            try:
                with self._p.watchdog.beside("evaluation", num_trained, "evaluate"):
                    results = await self._p.evaluator.evaluate(num_trained)
            except SlipstreamError as e:
                # an evaluation is a measurement: its failure is shown and recorded, training goes
                # on
                logger.error(
                    "evaluation after rollout %d failed: %s",
                    num_trained,
                    e,
                    exc_info=e if isinstance(e, UserFunctionError) else None,  # in the log's file
                )
                self._p.recorder.evaluation_failed(num_trained, e)
                return
        self._p.recorder.evaluated(results)

    async def save(self, rollout_id: int) -> None:
        """Saves where a checkpoint is due.

        With --async-save it is committed by a later rollout's call, and the last one before this
        returns."""
        interval, done = self._p.config.run.save_interval, rollout_id + 1
        await self._commit(wait=False)
        if self._p.clock.finished or (interval and done % interval == 0):
            await self._save_now(wait=self._p.clock.finished)

    async def _save_now(self, *, wait: bool) -> None:
        """Saves between two steps only, so that the snapshot's weights and the driver's state are
        of the same instant."""
        p = self._p
        if not p.saves:
            return
        if p.clock.num_trained == 0:
            logger.warning("nothing is trained yet: no snapshot to save")
            return
        if p.clock.num_trained == self._saved:
            await self._commit(wait=wait)
            return
        await self._pushes.through()
        state: dict[str, Any] = {
            "clock": p.clock.state_dict(),
            "producer": p.producer.state_dict(),
            "recorder": p.recorder.state_dict(),
        }
        await self._commit(wait=True)
        with p.recorder.trainer_busy(), p.watchdog.stage("save"):
            self._pending = await begin_snapshot(
                p.checkpoints, p.clock.num_trained, p.learner, state, p.config.run.save_hf
            )
        self._saved = p.clock.num_trained
        await self._commit(wait=wait)

    async def _commit(self, *, wait: bool) -> None:
        """Puts the snapshot that was begun in force, if all of it is on the disk (with `wait`: when
        it is)."""
        pending = self._pending
        if pending is None:
            return
        with self._p.recorder.trainer_busy(), self._p.watchdog.stage("save"):
            if not await self._p.learner.saved(wait=wait):
                return
            commit_snapshot(pending)
        self._pending = None
        self._p.buffer.committed(pending.num_trained, pending.path.name)
        logger.info("saved %s", pending.path)


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions in a (nested) group, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for e in error.exceptions for leaf in leaves(e)]
    return [error]


def _is_stop(error: BaseException) -> bool:
    return all(
        isinstance(e, StopRequested | asyncio.CancelledError) for e in leaves(error)
    ) and any(isinstance(e, StopRequested) for e in leaves(error))
