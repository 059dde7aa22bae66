"""Putting summary, picture and page on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.report.page import is_complete, render, sentences
from pipeline.report.summary import load_history, replace_text, summarise
from pipeline.run.rundir import RunDir

logger = logging.getLogger(__name__)


def write_report(run_dir: str | Path, *, wall_seconds: float | None = None) -> Path:
    """Writes reward.png and report.html from metrics.jsonl and config.yaml; returns the page's
    path.

    Works for a run of any state, also one without a rollout. Without matplotlib there is a warning
    instead of the picture."""
    run, history = RunDir(Path(run_dir)), load_history(run_dir)
    summary = summarise(history, wall_seconds=wall_seconds)
    replace_text(run.report, render(history, summary))
    try:
        from pipeline.report.plot import write_reward_png

        write_reward_png(history, run.reward_png)
    except ImportError as e:
        logger.warning("%s is left out: %s", run.reward_png, e)
    return run.report


def closing_lines(run_dir: str | Path, summary: Mapping[str, Any]) -> list[str]:
    """What to print at the end of a run: the outcome in words, and where the rest is."""
    run, history = RunDir(Path(run_dir)), load_history(run_dir)
    state = "done" if is_complete(history) else "stopped early"
    return [f"{state}: {sentences(history, summary)}", f"report: {run.report}"]
