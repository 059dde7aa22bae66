"""The closing line shouts where a promise was broken, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.telemetry.view import RunView, breaks_bound, plain_line
from tests.unit.pipeline.report.test_learned import closing


def row(worst: int, beyond: int | None = None, recalled: int = 0) -> dict[str, Any]:
    counts = {"num_groups_beyond_bound": beyond, "num_groups_beyond_bound_recalled": recalled}
    said = {} if beyond is None else counts
    return {"staleness_max": worst, "staleness_bound": 2, **said}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(2, 0)], "was 2 policy versions old, within the bound of 2."),
        ([row(1)], "was 1 policy version old, within the bound of 2."),
        (
            [row(1, 0), row(5, 2, 2), row(4, 1, 1)],
            "was 5 policy versions old, beyond the bound of 2, in 3 groups recalled after a crash:"
            " versions whose weights were lost in it count. No other is beyond it.",
        ),
        (
            [row(5, 2, 2), row(3, 1)],
            "5 policy versions old, BEYOND the bound of 2 (in 1 group, beside 2 recalled after a"
            " crash).",
        ),
        ([row(3, 1)], "3 policy versions old, BEYOND the bound of 2 (in 1 group)."),
        ([row(3)], "3 policy versions old, BEYOND the bound of 2."),  # of an older run
    ],
)
def test_recalled_groups_are_exempt_and_said_to_be(
    tmp_path: Path, rows: list[dict[str, Any]], words: str
) -> None:
    said = closing(tmp_path / "r", rows)
    assert words in said
    broken = any(breaks_bound(row) for row in rows)
    assert broken == ("BEYOND" in said)


def test_the_line_of_a_rollout_names_recalled_groups() -> None:
    view = RunView(name="r", num_rollout=3)
    view.add({"kind": "train", "rollout_id": 0, **row(5, 2, 2)})
    assert "max 5 (bound 2, but for 2 recalled groups)" in plain_line(view)
    view.add({"kind": "train", "rollout_id": 1, **row(2, 0)})
    assert "max 2 (bound 2)" in plain_line(view)
