"""The closing line is true for short runs, for rewards of any scale, and for supervised runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.report import closing_lines, write_report, write_summary
from pipeline.run.record_file import line_of


def closing(path: Path, rows: Sequence[dict[str, Any]], config: str = "") -> str:
    """The closing line of a run with these train records."""
    path.mkdir()
    (path / "config.yaml").write_text(f"- --num-rollout {len(rows)}\n{config}")
    records = [
        {"kind": "train", "rollout_id": i, "wall_seconds": float(i), **row}
        for i, row in enumerate(rows)
    ]
    (path / "metrics.jsonl").write_text("".join(map(line_of, records)))
    write_report(path)
    return closing_lines(path, write_summary(path))[0]


def rewards(*means: float, **more: Any) -> list[dict[str, Any]]:
    return [
        {"reward_mean": m, "reward_min": min(m, 0.0), "reward_max": max(m, 1.0), **more}
        for m in means
    ]


def test_one_rollout_has_no_course(tmp_path: Path) -> None:
    said = closing(tmp_path / "r", rewards(0.25))
    assert "Mean reward was 0.250 in the only rollout." in said and "first" not in said


def test_a_short_run_compares_what_it_has(tmp_path: Path) -> None:
    said = closing(tmp_path / "three", rewards(0.1, 0.5, 0.3))
    assert "went from 0.100 (first rollout) to 0.300 (last)." in said
    said = closing(tmp_path / "seven", rewards(0.1, 0.1, 0.1, 0.5, 0.3, 0.3, 0.3))
    assert "went from 0.100 (first 3 rollouts) to 0.300 (last 3)." in said
    said = closing(tmp_path / "ten", rewards(*[0.1] * 5, *[0.3] * 5))
    assert "went from 0.100 (first 5 rollouts) to 0.300 (last 5)." in said


def test_a_goal_of_0_9_is_for_shares_only(tmp_path: Path) -> None:
    assert "reached 0.9" in closing(tmp_path / "shares", rewards(0.9, 1.0, 1.0))
    assert "reached 0.9" not in closing(tmp_path / "to four", rewards(2.0, 3.0, 3.9))
    # means within 0 and 1, of rewards that go beyond
    points = [{"reward_mean": 0.95, "reward_min": 0.0, "reward_max": 4.0}] * 3
    assert "reached 0.9" not in closing(tmp_path / "points", points)
    signed = [{"reward_mean": 0.95, "reward_min": -1.0, "reward_max": 1.0}] * 3
    assert "reached 0.9" not in closing(tmp_path / "signed", signed)


def test_the_trailing_mean_is_over_what_there_is(tmp_path: Path) -> None:
    assert "(mean of 2 rollouts, start-up" in closing(tmp_path / "r", rewards(1.0, 1.0))


def test_a_supervised_run_speaks_of_its_loss(tmp_path: Path) -> None:
    rows = [{**row, "loss": loss} for row, loss in zip(rewards(1.0, 1.0), (2.0, 0.5), strict=True)]
    said = closing(tmp_path / "r", rows, "- --loss-type sft_loss\n")
    assert "Mean loss went from 2.00 (first rollout) to 0.500 (last)." in said
    assert "reward" not in said
    page = (tmp_path / "r" / "report.html").read_text().split("<script>")[0]
    assert "<h2>Loss</h2>" in page and "reward" not in page.lower()
    assert "reward" not in (tmp_path / "r" / "reward.svg").read_text()
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["reward_last"] is None and summary["loss_last"] == 0.5


def test_a_run_of_equal_rewards_says_that_nothing_was_learned(tmp_path: Path) -> None:
    said = closing(tmp_path / "all", rewards(0.0, 0.0, 0.0, rewards_equal=True))
    assert "Nothing was learned from rewards" in said and "--label-key" in said
    some = [*rewards(0.0, rewards_equal=True), *rewards(0.5, 0.5, rewards_equal=False)]
    said = closing(tmp_path / "some", some)
    assert "In 1 of 3 rollouts all rewards" in said and "Nothing was learned" not in said
