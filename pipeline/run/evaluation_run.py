"""One evaluation of one checkpoint, without a learner: engines up, every data set once, engines
down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pipeline.core.types import EvalResult
from pipeline.run.parts import EvaluationStage
from pipeline.run.shutdown import Stop, StopRequested


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationParts:
    """What an evaluation is made of."""

    evaluator: EvaluationStage
    num_trained: int  # rollouts that made the checkpoint: what its results are recorded under
    record: Callable[[Sequence[EvalResult]], None]
    start: Callable[[], Awaitable[None]]  # the engines are up
    began: Callable[[], None]  # they are: the run's folder is there to stay
    abandon: Callable[[], None]  # they did not come up: as if it had never been asked for
    close: Callable[[], Awaitable[None]]  # everything down, from any state
    kill_now: Callable[[], None]  # the same, at once and synchronously


class EvaluationRun:
    """Consumes: the prompts of every data set. Waits for: the engines, and every sample. A signal
    ends it: what was measured by then is not recorded, for it would be of some prompts only."""

    def __init__(self, parts: EvaluationParts) -> None:
        self._p = parts
        self._stop = Stop(parts.kill_now)
        self._closed = False
        self.interrupted_by: int | None = None  # signal number
        self.results: list[EvalResult] = []

    async def evaluate(self) -> None:
        """Raises EngineError and what else keeps it from measuring."""
        self._stop.install()
        begun = False
        try:
            await self._stop.or_result(self._p.start)
            self._p.began()
            begun = True
            self.results = await self._stop.or_result(
                lambda: self._p.evaluator.evaluate(self._p.num_trained)
            )
            self._p.record(self.results)
        except StopRequested:
            self.interrupted_by = self._stop.signal_number
        finally:
            try:  # shielded, so that a cancelled one leaves no process behind either
                await asyncio.shield(asyncio.ensure_future(self._p.close()))
            finally:
                self._closed = True
                if not begun:
                    self._p.abandon()
                self._stop.uninstall()

    def end_now(self) -> None:
        """Ends whatever is still up, at once: the event loop is gone."""
        if not self._closed:
            self._p.kill_now()
