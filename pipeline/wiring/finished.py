"""A run that is loaded and has nothing left to train says so before anything starts."""

from __future__ import annotations

import json
import shlex

from configs.schema import RunConfig
from pipeline.report import closing_lines, load_history, write_report, write_summary
from pipeline.run.outcome import NothingToDo
from pipeline.run.resume import ResumePoint
from pipeline.run.rundir import RunDir


def check_unfinished(run: RunConfig, point: ResumePoint, num_trained: int) -> None:
    """`num_trained`: rollouts in the checkpoint. Raises NothingToDo where those are all that
    --num-rollout asks for."""
    if run.load is None or num_trained < run.num_rollout or not _is_settled(point):
        return
    words = ["--load", run.load, "--num-rollout", str(2 * num_trained)]
    if point.home is None and run.name is not None:
        words += ["--name", run.name]
    lines = [*_outcome(point.home)] if point.home is not None else []
    lines.append(
        f"nothing to do: all {num_trained} rollouts of --num-rollout are trained in"
        f" {point.snapshot}, and nothing was started. To go on, ask for more:"
        f" {shlex.join(words)}"
    )
    raise NothingToDo("\n".join(lines))


def _is_settled(point: ResumePoint) -> bool:
    """Does the journal know that a checkpoint covers everything? A kill may have come between the
    checkpoint and the journal's line about it: then the run goes on as any other, and writes it."""
    if point.ledger is None:
        return True
    return all(a.committed_by for a in point.ledger.accounts.values() if a.consumed)


def _outcome(home: RunDir) -> list[str]:
    """The words with which the run ended; where a kill came before them, its summary and report are
    written now."""
    history = load_history(home.path)
    summary = json.loads(home.summary.read_text()) if home.summary.exists() else {}
    if summary.get("num_rollouts") != len(history.train) or not home.report.exists():
        summary = write_summary(home.path)
        write_report(home.path)
    return closing_lines(home.path, summary)
