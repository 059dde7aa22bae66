"""Records on disk: strict JSON, torn lines, resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.types import Status
from pipeline.run.record_file import current_records, jsonable, line_of, read_records, roll_back


def train(rollout: int, life: int = 0) -> dict[str, Any]:
    return {"kind": "train", "rollout_id": rollout, "life": life}


def test_strict_json_with_the_non_finite_named() -> None:
    line = line_of(
        {
            "kind": "train",
            "loss": math.nan,
            "n": np.int64(3),
            "x": np.float32(0.5),
            "deep": {"a": [1.0, math.inf]},
            "s": Status.FAILED,
        }
    )
    record = json.loads(line, parse_constant=lambda c: pytest_fail(c))
    assert record == {
        "kind": "train",
        "loss": None,
        "n": 3,
        "x": 0.5,
        "deep": {"a": [1.0, None]},
        "s": "failed",
        "non_finite": ["loss=nan", "deep.a[1]=inf"],
    }
    assert line.endswith("\n")
    assert line.count("\n") == 1


def pytest_fail(constant: str) -> None:
    raise AssertionError(f"not strict JSON: {constant}")


def test_what_json_cannot_hold_becomes_text() -> None:
    assert jsonable({"path": Path("/a/b"), "lines": "a\nb"}) == {"path": "/a/b", "lines": "a\nb"}


def test_reading_skips_what_is_torn_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(
        line_of(train(0))
        + '{"kind": "tr\n'
        + "[1]\n"
        + line_of(train(1))
        + '{"kind": "train", "rollo'
    )
    assert [r["rollout_id"] for r in read_records(path)] == [0, 1]
    assert len(caplog.records) == 1
    assert "3 lines skipped" in caplog.text and "line 2, 3, 5" in caplog.text
    assert read_records(tmp_path / "none") == []


def test_roll_back_moves_what_a_resume_will_do_again(tmp_path: Path) -> None:
    path, aside = tmp_path / "m.jsonl", tmp_path / "aside.jsonl"
    rows = []
    for r in range(5):
        rows += [train(r), {"kind": "push", "rollout_id": r}]
    rows += [{"kind": "eval", "rollout_id": n} for n in (3, 4)] + [
        {"kind": "engine", "event": "start"}
    ]
    path.write_text("".join(map(line_of, rows)) + '{"kind": "tra')
    assert roll_back(path, aside, num_trained=3) == 2 + 2 + 1 + 1
    assert [(r["kind"], r.get("rollout_id")) for r in read_records(path)] == [
        ("train", 0),
        ("push", 0),
        ("train", 1),
        ("push", 1),
        ("train", 2),
        ("push", 2),
        ("eval", 3),
        ("engine", None),
    ]
    assert len(aside.read_text().splitlines()) == 6
    assert roll_back(path, aside, num_trained=3) == 0  # a second resume finds nothing more to do
    assert roll_back(tmp_path / "none", aside, num_trained=3) == 0


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), max_size=6))
def test_no_rollout_counts_twice_whatever_the_lives(lives: list[tuple[int, int]]) -> None:
    """Each life goes back to some checkpoint at or before where the last one ended, and trains a
    few rollouts."""
    rows, latest, end = [], {}, 0
    for life, (back, length) in enumerate(lives):
        start = max(end - back, 0)
        end = start + length
        latest = {r: v for r, v in latest.items() if r < start} | dict.fromkeys(
            range(start, end), life
        )
        for r in range(start, end):
            rows += [train(r, life), {"kind": "push", "rollout_id": r, "life": life}]
    for kind in ("train", "push"):
        got = [(r["rollout_id"], r["life"]) for r in current_records(rows) if r["kind"] == kind]
        assert got == sorted(latest.items())
