"""Evaluations beside the learner's loop, one after the other, in order."""

from __future__ import annotations

import asyncio
import logging

from pipeline.core.errors import SlipstreamError, UserFunctionError
from pipeline.run.parts import Parts
from pipeline.run.pushes import Pushes

logger = logging.getLogger(__name__)


class Evaluations:
    """Training goes on meanwhile; results are recorded when they come. Consumes: the engines'
    weights, as the push under way brings them. Waits for: that push, and the evaluation before."""

    def __init__(self, parts: Parts, pushes: Pushes) -> None:
        self._p, self._pushes = parts, pushes
        self._order = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def under_way(self) -> set[asyncio.Task[None]]:
        """Those that were started and are not through, as of now."""
        return set(self._tasks)

    def due_after(self, rollout_id: int) -> bool:
        """Is an evaluation due after this rollout?"""
        interval = self._p.config.eval.eval_interval
        last = rollout_id + 1 == self._p.config.run.num_rollout
        return bool(interval and ((rollout_id + 1) % interval == 0 or last))

    def start(self, num_trained: int, beside: asyncio.TaskGroup) -> None:
        """Evaluates what so many rollouts have made, as a task of `beside`."""
        if self._p.evaluator is None:
            return
        task = beside.create_task(self._in_order(num_trained, self._pushes.under_way))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def through(self) -> None:
        """Waits for all that were started."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _in_order(self, num_trained: int, push: asyncio.Task[None] | None) -> None:
        """With a push under way, the weights to evaluate are those that it brings."""
        assert self._p.evaluator is not None
        if push is not None:
            await asyncio.wait({push})
        if self._order.locked():
            logger.warning(
                "the evaluation after %d rollouts has to wait: %s",
                num_trained,
                "; ".join(map(str, self._p.watchdog.under_way("evaluation"))),
            )
        async with self._order:
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
