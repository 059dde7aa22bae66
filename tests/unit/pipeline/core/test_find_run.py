"""Whatever --load names of a run, it is that run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.core.find_run import OWNER, find_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a checkpoint in its own folder and one in a --save folder."""
    run = tmp_path / "runs" / "q"
    for folder in (run / "checkpoints", tmp_path / "elsewhere"):
        (folder / "rollout_000002").mkdir(parents=True)
        (folder / "rollout_000002" / "state.json").touch()
        (folder / "latest").symlink_to("rollout_000002")
    (run / "config.yaml").touch()
    (tmp_path / "elsewhere" / OWNER).write_text(json.dumps({"run_dir": str(run)}))
    (tmp_path / "runs" / "latest").symlink_to("q")
    return run


@pytest.mark.parametrize(
    "place",
    [
        "runs/q",
        "runs/latest",
        "runs/q/checkpoints",
        "runs/q/checkpoints/latest",
        "runs/latest/checkpoints/rollout_000002",
        "elsewhere",
        "elsewhere/rollout_000002",
        "elsewhere/latest",
    ],
)
def test_found_from_any_of_its_folders(run: Path, tmp_path: Path, place: str) -> None:
    assert find_run(tmp_path / place) == run


def test_no_run_where_none_is(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied" / "rollout_000002"
    copied.mkdir(parents=True)
    (copied / "state.json").touch()
    assert find_run(copied) is None and find_run(copied.parent) is None
    assert find_run(tmp_path) is None and find_run(tmp_path / "nothing") is None
    (run / "config.yaml").unlink()  # the owner is gone
    assert find_run(tmp_path / "elsewhere") is None
