"""The run directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError
from pipeline.run.rundir import create_run_dir, open_run_dir, point_latest, withdraw_run_dir


def test_taken_names_are_numbered_and_latest_follows(tmp_path: Path) -> None:
    runs = [create_run_dir(tmp_path / "runs", "q") for _ in range(3)]
    assert [run.name for run in runs] == ["q", "q-2", "q-3"]
    assert not (tmp_path / "runs" / "latest").exists()
    for run in runs:
        point_latest(run)
    assert (tmp_path / "runs" / "latest").resolve().name == "q-3"
    assert (tmp_path / "runs" / "q" / "logs").is_dir()


def test_somebodys_own_latest_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "mine").touch()
    point_latest(create_run_dir(tmp_path, "q"))
    assert (tmp_path / "latest" / "mine").exists()


def test_a_run_that_never_began_leaves_no_folder_but_what_it_logged(tmp_path: Path) -> None:
    assert withdraw_run_dir(create_run_dir(tmp_path, "q")) is None
    assert list(tmp_path.iterdir()) == []
    for text in ("older", "newer"):
        run = create_run_dir(tmp_path, "q")
        (run.logs / "engine-0.log").write_text(text)
        aside = withdraw_run_dir(run)
        assert aside is not None and (aside / "logs" / "engine-0.log").read_text() == text
        assert list(tmp_path.iterdir()) == [aside]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "latest", "failed-start", "a b"])
def test_names_that_are_no_folder_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        create_run_dir(tmp_path, name)


def test_a_runs_dir_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--runs-dir"):
        create_run_dir(tmp_path / "file", "q")


def test_opening(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run directory"):
        open_run_dir(tmp_path / "none")
    with pytest.raises(ConfigError, match="not a run directory"):
        open_run_dir(tmp_path)
    run = create_run_dir(tmp_path, "q")
    run.config.touch()
    point_latest(run)
    assert open_run_dir(run.path).name == "q"
    assert open_run_dir(tmp_path / "latest").name == "q"
