"""An evaluation without a learner leaves nothing behind, however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.core.errors import EngineError
from pipeline.core.types import EvalResult
from pipeline.run.evaluation_run import EvaluationParts, EvaluationRun


class World:
    """Notes what happens; `start` and `evaluate` do what they are told."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.start_error: Exception | None = None
        self.hangs = False
        self.evaluating = asyncio.Event()

    async def start(self) -> None:
        self.seen.append("start")
        if self.start_error is not None:
            raise self.start_error

    async def evaluate(self, rollout_id: int) -> list[EvalResult]:
        self.seen.append(f"evaluate {rollout_id}")
        self.evaluating.set()
        if self.hangs:
            await asyncio.Event().wait()
        return []

    async def close(self) -> None:
        self.seen.append("close")

    def record(self, results: Sequence[EvalResult]) -> None:
        self.seen.append("record")

    def run(self) -> EvaluationRun:
        def note(word: str) -> Any:
            return lambda: self.seen.append(word)

        return EvaluationRun(
            EvaluationParts(
                evaluator=self,
                num_trained=7,
                record=self.record,
                start=self.start,
                began=note("began"),
                abandon=note("abandon"),
                close=self.close,
                kill_now=note("kill"),
            )
        )


async def test_it_starts_evaluates_records_and_closes() -> None:
    world = World()
    run = world.run()
    await run.evaluate()
    assert world.seen == ["start", "began", "evaluate 7", "record", "close"]
    run.end_now()
    assert "kill" not in world.seen and run.interrupted_by is None


async def test_engines_that_do_not_start_leave_no_folder() -> None:
    world = World()
    world.start_error = EngineError("no")
    with pytest.raises(EngineError):
        await world.run().evaluate()
    assert world.seen == ["start", "close", "abandon"]


async def test_a_signal_ends_it_without_a_record_of_half_the_prompts() -> None:
    world = World()
    world.hangs = True
    run = world.run()
    task = asyncio.create_task(run.evaluate())
    await world.evaluating.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await task
    assert world.seen == ["start", "began", "evaluate 7", "close"]
    assert run.interrupted_by == signal.SIGTERM


async def test_one_whose_loop_is_gone_is_ended_at_once() -> None:
    world = World()
    world.run().end_now()
    assert world.seen == ["kill"]
