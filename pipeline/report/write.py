"""Puts summary, picture and page on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.report.charts import course_chart, staleness_chart
from pipeline.report.page import render
from pipeline.report.summary import load_history, replace_text, summarise
from pipeline.report.svg import picture
from pipeline.report.words import is_complete, sentences
from pipeline.run.rundir import RunDir


def write_report(run_dir: str | Path, *, wall_seconds: float | None = None) -> Path:
    """Writes reward.svg and report.html from metrics.jsonl, samples.jsonl and config.yaml; returns
    the page's path.

    Works for a run of any state, also one without a rollout.
    """
    run, history = RunDir(Path(run_dir)), load_history(run_dir)
    summary = summarise(history, wall_seconds=wall_seconds)
    replace_text(run.report, render(history, summary))
    what = "loss" if history.is_supervised else "reward"
    title = f"{history.name}: {what} over {len(history.train)} rollouts"
    small = replace(staleness_chart(history), height=100)
    replace_text(run.reward_picture, picture(title, [course_chart(history), small]))
    return run.report


def closing_lines(run_dir: str | Path, summary: Mapping[str, Any]) -> list[str]:
    """What to print at the end of a run: the outcome in words, and where the rest is."""
    run, history = RunDir(Path(run_dir)), load_history(run_dir)
    state = "done" if is_complete(history) else "stopped early"
    return [f"{state}: {sentences(history, summary)}", f"report: {run.report}"]
