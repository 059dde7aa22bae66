"""An evaluation of a checkpoint alone: a run's engines, generation and rewards, and nothing of what
trains."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from configs.schema import Config
from pipeline.core.types import EvalResult
from pipeline.report.evaluation import evaluation_lines
from pipeline.run.children import end_children
from pipeline.run.evaluation_run import EvaluationParts, EvaluationRun
from pipeline.run.metrics import eval_record
from pipeline.telemetry import open_telemetry
from pipeline.wiring.backend import Backend
from pipeline.wiring.context import RunContext, open_context, withdraw
from pipeline.wiring.debug import half
from pipeline.wiring.evaluation import Scorers, build_evaluator
from pipeline.wiring.prompts import make_source
from pipeline.wiring.simulated import simulated

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The weights that are evaluated, and where they come from."""

    model: str  # what --hf-checkpoint takes
    policy_version: int = 0
    num_trained: int = 0  # rollouts


def build_evaluation(config: Config, weights: Evaluated) -> EvaluationRun:
    """Everything that fails on bad input fails here, before any process is started. `config`: of
    half a pipeline, without a learner. Raises ConfigError, DataError, CheckpointError."""
    started_at = time.monotonic()
    site, undo = open_context(config), ExitStack()
    undo.callback(withdraw, site.run_dir)
    try:
        return _assemble(site, weights, undo, started_at)
    except BaseException:
        undo.close()
        raise


def _assemble(
    site: RunContext, weights: Evaluated, undo: ExitStack, started_at: float
) -> EvaluationRun:
    site.clock.renumber(0, weights.policy_version)  # engines call their weights so
    if site.config.run.mock:
        site = simulated(site)
    backend = _backend(site)
    undo.callback(backend.router.release)
    scorers = Scorers(site.config.reward, site.args)
    asks_source = site.config.eval.eval_function_path is not None
    engines = site.config.num_engines * site.config.cluster.sglang_server_concurrency
    evaluator = build_evaluator(
        site.config,
        site.args,
        backend,
        scorers,
        make_source(site, backend) if asks_source else None,
        max_concurrent_prompts=engines,  # no rollouts are there to be held up
    )
    assert evaluator is not None, "the configuration has nothing to evaluate"
    telemetry = open_telemetry(site.run_dir, site.config)
    undo.callback(telemetry.close)
    for note in site.config.notes:
        logger.warning(note)

    def record(results: Sequence[EvalResult]) -> None:
        rows = [{**eval_record(result), "checkpoint": weights.model} for result in results]
        for row in rows:
            telemetry.emit(**row, wall_seconds=time.monotonic() - started_at)
        telemetry.close()
        print("\n".join(["", *evaluation_lines(rows), f"records: {site.run_dir.metrics}"]))

    def began() -> None:
        undo.pop_all()

    async def close() -> None:
        try:
            await backend.close()
        finally:
            await scorers.close()
            telemetry.close()

    def kill_now() -> None:
        backend.kill_now()
        end_children()
        telemetry.close()  # gives the terminal back

    return EvaluationRun(
        EvaluationParts(
            evaluator=evaluator,
            num_trained=weights.num_trained,
            record=record,
            start=backend.start,
            began=began,
            abandon=undo.close,
            close=close,
            kill_now=kill_now,
        )
    )


def _backend(site: RunContext) -> Backend:
    if site.config.run.mock:
        from pipeline.wiring.mock import mock_backend as make_backend
    else:
        from pipeline.wiring.real import real_backend as make_backend
    return half(make_backend(site), site.config)
