"""Snapshots: complete or not there, whatever the instant of a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import CheckpointError
from pipeline.core.types import StepResult, TrainBatch
from pipeline.run.snapshot import begin_snapshot, commit_snapshot, find_snapshot, read_state


class FakeLearner:
    """Writes one file; with `crash` dies half way, as a killed process does."""

    def __init__(self, weights: str = "w", crash: bool = False) -> None:
        self.weights, self.crash = weights, crash

    async def save(self, path: Path, hf: Path | None) -> None:
        self.hf = hf
        (path / "torch_dist").mkdir()
        if self.crash:
            raise KeyboardInterrupt
        (path / "torch_dist" / "weights").write_text(self.weights)

    async def saved(self, *, wait: bool) -> bool:
        return True

    async def step(self, batch: TrainBatch) -> StepResult:
        raise NotImplementedError

    async def load(self, path: Path) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


async def save(folder: Path, num_trained: int, weights: str = "w", **state: Any) -> Path:
    pending = await begin_snapshot(folder, num_trained, FakeLearner(weights), state)
    commit_snapshot(pending)
    return pending.path


async def crash(folder: Path, num_trained: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        await begin_snapshot(folder, num_trained, FakeLearner(crash=True), {})


async def test_a_snapshot_is_found_by_run_folder_or_name(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    first, second = await save(folder, 2, clock={"a": 1}), await save(folder, 4, clock={"a": 2})
    assert (first.name, second.name) == ("rollout_000002", "rollout_000004")
    assert (
        find_snapshot(str(tmp_path))
        == find_snapshot(str(folder))
        == find_snapshot(str(second))
        == second
    )
    assert find_snapshot(str(first)) == first
    assert read_state(second)["clock"] == {"a": 2} and read_state(first)["clock"] == {"a": 1}


async def test_a_torn_snapshot_is_refused_by_name_and_the_one_before_is_in_force(
    tmp_path: Path,
) -> None:
    good = await save(tmp_path, 2)
    await crash(tmp_path, 4)
    assert find_snapshot(str(tmp_path)) == good
    with pytest.raises(
        CheckpointError,
        match=r"rollout_000004: a snapshot without its DONE marker \(torn by a crash\)",
    ):
        find_snapshot(str(tmp_path / "rollout_000004"))
    again = await save(tmp_path, 4, weights="new")  # a resumed run gets there again
    assert (
        again.name == "rollout_000004" and (again / "torch_dist" / "weights").read_text() == "new"
    )
    assert find_snapshot(str(tmp_path)) == again


async def test_until_it_is_committed_the_one_before_is_in_force(tmp_path: Path) -> None:
    good = await save(tmp_path, 2)
    pending = await begin_snapshot(
        tmp_path, 4, FakeLearner("late"), {"clock": {"a": 1}}, "{checkpoint}/hf"
    )
    assert find_snapshot(str(tmp_path)) == good
    commit_snapshot(pending)
    assert find_snapshot(str(tmp_path)) == pending.path and read_state(pending.path)["clock"] == {
        "a": 1
    }


@pytest.mark.parametrize(
    ("template", "want"),
    [("{checkpoint}/hf", "rollout_000004/hf"), ("hf/{rollout_id}", "hf/3"), (None, None)],
)
async def test_save_hf_names_the_folder(
    tmp_path: Path, template: str | None, want: str | None
) -> None:
    learner = FakeLearner()
    await begin_snapshot(
        tmp_path,
        4,
        learner,
        {},
        template if template is None or "checkpoint" in template else f"{tmp_path}/{template}",
    )
    assert learner.hf == (want and tmp_path / want)


async def test_a_crash_between_the_marker_and_the_link_leaves_both_loadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = await save(tmp_path, 2)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        await save(tmp_path, 4)
    assert find_snapshot(str(tmp_path)) == good
    assert find_snapshot(str(tmp_path / "rollout_000004")).name == "rollout_000004"
    await save(tmp_path, 6)
    assert find_snapshot(str(tmp_path)).name == "rollout_000006"


async def test_another_runs_snapshot_of_that_name_is_neither_lost_nor_mistaken_for_this_one(
    tmp_path: Path,
) -> None:
    theirs = await save(tmp_path, 2, weights="theirs")
    mine = await save(tmp_path, 2, weights="mine", clock={"a": 1})
    assert (theirs / "torch_dist" / "weights").read_text() == "theirs"
    assert (mine / "torch_dist" / "weights").read_text() == "mine" and mine != theirs
    assert find_snapshot(str(tmp_path)) == mine and read_state(mine)["clock"] == {"a": 1}


def test_nothing_to_load_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match="expected a run directory, its checkpoints folder, or a rollout_NNNNNN folder",
    ):
        find_snapshot(str(tmp_path))


async def test_a_state_that_cannot_be_read(tmp_path: Path) -> None:
    path = await save(tmp_path, 2)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "state_version": 99}))
    with pytest.raises(CheckpointError, match=r"state_version 99, this Slipstream reads 2"):
        read_state(path)
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json cannot be read"):
        read_state(path)
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json cannot be read"):
        read_state(path)
