"""From the configuration to a running Telemetry."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import Config, TrackingConfig, flags_of
from configs.schema.marks import SECRET_OPTIONS
from pipeline.core.protocols import Sink
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.run.record_file import Record, current_records, jsonable, read_records, roll_back
from pipeline.run.rundir import RunDir
from pipeline.telemetry.hub import JsonlSink, Telemetry
from pipeline.telemetry.logs import start_logging, to_stderr
from pipeline.telemetry.view import RunView

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)


def open_telemetry(
    run_dir: RunDir,
    config: Config,
    *,
    resumed_at: int | None = None,
    time: TimeSource | None = None,
    console: Console | None = None,
    live: bool | None = None,
) -> Telemetry:
    """Log files and every sink that `config.run` asks for. Close it at the end: it gives the
    terminal and `logging` back.

    `resumed_at`: rollouts trained in the checkpoint this run goes on from; rows of later rollouts
    that an earlier life of the run left in metrics.jsonl are moved to metrics.rolled-back.jsonl.
    `live`: a live panel instead of lines (default: when stdout is a terminal). A tracker that does
    not start is left out with a warning."""
    moved = (
        roll_back(run_dir.metrics, run_dir.rolled_back, resumed_at) if resumed_at is not None else 0
    )
    if resumed_at is not None:
        roll_back(run_dir.samples, run_dir.rolled_back, resumed_at)
    # first and unguarded: a run that cannot write its records should not start
    files: list[Sink] = [JsonlSink(run_dir.metrics), JsonlSink(run_dir.samples, {"sample"})]
    view = RunView(
        name=run_dir.name,
        num_rollout=config.run.num_rollout,
        run_dir=str(run_dir.path),
        supervised=config.algorithm.is_supervised,
    )
    earlier = current_records(read_records(run_dir.metrics))
    for record in earlier:
        if record["kind"] != "engine":  # the engines of an earlier life are gone
            view.add(record)
    # before the live view: wandb may ask for a login
    trackers, problems = _trackers(run_dir, config, earlier, rolled_back=moved > 0)
    terminal, write_log = _terminal(view, console, time or MonotonicTime(), live)
    stop_logging = start_logging(run_dir.run_log, config.run.log_level, write_log)
    if moved:
        logger.info(
            "resumed after %d rollouts: %d rows of later ones are now in %s",
            resumed_at,
            moved,
            run_dir.rolled_back.name,
        )
    for problem in problems:
        logger.warning(problem)
    return Telemetry([*files, *trackers, terminal], on_close=stop_logging)


def _terminal(
    view: RunView, console: Console | None, time: TimeSource, live: bool | None
) -> tuple[Sink, Callable[[str, int], None]]:
    from pipeline.telemetry.terminal import LiveSink, PlainSink

    if not (sys.stdout.isatty() if live is None else live):
        return PlainSink(view, _to_stdout), to_stderr
    if console is None:
        from rich.console import Console

        console = Console()
    screen = console

    def write_log(text: str, level: int) -> None:
        style = (
            "bold red"
            if level >= logging.ERROR
            else "yellow"
            if level >= logging.WARNING
            else "dim"
        )
        screen.print(text, style=style, markup=False, highlight=False)

    return LiveSink(view, console, time), write_log


def _to_stdout(line: str) -> None:
    print(line, flush=True)


def _trackers(
    run_dir: RunDir, config: Config, earlier: Sequence[Record], *, rolled_back: bool
) -> tuple[list[Sink], list[str]]:
    """The trackers that start, and what is to be said of those that do not."""
    tracking = config.tracking
    wanted: list[tuple[str, Callable[[], Sink]]] = []
    if tracking.use_wandb:
        wanted.append(("--use-wandb", lambda: _wandb(run_dir, config, earlier, rolled_back)))
    if tracking.use_tensorboard:
        wanted.append(("--use-tensorboard", lambda: _tensorboard(run_dir, tracking, earlier)))
    sinks, problems = [], []
    for flag, make in wanted:
        try:
            sinks.append(make())
        except Exception as e:  # any: no network, no login, not installed
            said = str(e).replace(tracking.wandb_key or "***", "***")
            problems.append(f"{flag} is off, the run goes on: {type(e).__name__}: {said}")
    return sinks, problems


def _wandb(run_dir: RunDir, config: Config, earlier: Sequence[Record], rolled_back: bool) -> Sink:
    from pipeline.telemetry.trackers import WandbSink

    settings = jsonable(flags_of(config))
    keys = (config.sglang.get(name) for name in SECRET_OPTIONS)
    for secret in filter(None, (config.tracking.wandb_key, *keys)):
        # W&B keeps the command line with the run
        sys.argv[:] = [word.replace(secret, "***") for word in sys.argv]
    return WandbSink(
        run_dir.path,
        config.tracking,
        name=run_dir.name,
        config=settings,
        earlier=earlier,
        rolled_back=rolled_back,
    )


def _tensorboard(run_dir: RunDir, tracking: TrackingConfig, earlier: Sequence[Record]) -> Sink:
    from pipeline.telemetry.trackers import TensorBoardSink

    return TensorBoardSink(
        tensorboard_folder(run_dir, tracking),
        earlier=earlier,
        shared=tracking.tb_experiment_name is not None,
    )


def tensorboard_folder(run_dir: RunDir, tracking: TrackingConfig) -> Path:
    """RUN_DIR/tensorboard, or a folder of the run's own where several runs have theirs."""
    if tracking.tensorboard_dir is None and not (
        tracking.tb_project_name or tracking.tb_experiment_name
    ):
        return run_dir.tensorboard
    together = Path(tracking.tensorboard_dir or "tensorboard_log")
    own = tracking.tb_experiment_name or run_dir.name
    return together / (tracking.tb_project_name or "") / own
