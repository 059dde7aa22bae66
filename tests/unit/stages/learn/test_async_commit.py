"""A run whose learner writes snapshots for some rollouts: what is in force when, and what a failure
or a stop in between leaves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from buffers.journal import FILE_NAME, read_journal
from configs.command_line.loader import load_config
from pipeline.core.errors import LearnerError
from pipeline.run.runner import Runner, leaves
from pipeline.run.snapshot import find_snapshot, read_state
from pipeline.wiring import FAMILIES, build
from train_async import train


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.write_report", lambda *_args, **_kwargs: None)


class SlowToWrite:
    """The mock learner, whose bytes are on the disk when `saved` has been asked `num_polls` times,
    or is told to wait."""

    def __init__(self, inner: Any, folder: Path, num_polls: int = 2, broken: bool = False) -> None:
        self._inner, self._folder, self._num_polls, self._broken = inner, folder, num_polls, broken
        self._path: Path | None = None
        self._polls = 0
        self.events: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def step(self, batch: Any) -> Any:
        self.events.append(f"step {batch.rollout_id}")
        return await self._inner.step(batch)

    async def save(self, path: Path, hf: Path | None) -> None:
        assert self._path is None, "the save before is not finished"
        self._path, self._polls = path, 0
        await self._inner.save(path, hf)
        self.events.append(f"begin {path.name}, {self._in_force()} in force")

    async def saved(self, *, wait: bool) -> bool:
        if self._path is None:
            return True
        self._polls += 1
        if not wait and self._polls < self._num_polls:
            return False
        if self._broken:
            raise LearnerError("disk full")
        self.events.append(f"written {self._path.name}, {self._in_force()} in force")
        self._path = None
        return True

    def _in_force(self) -> str:
        return (
            find_snapshot(str(self._folder)).name
            if (self._folder / "latest").exists()
            else "nothing"
        )


def mock_run(tmp_path: Path, **slow: Any) -> tuple[Runner, SlowToWrite]:
    words = (
        "--mock --num-rollout 6 --save-interval 2 --rollout-batch-size 2 --n-samples-per-prompt 2"
        " --mock-step-seconds 0.001"
    )
    config = load_config(
        [*words.split(), "--runs-dir", str(tmp_path), "--name", "m", "--async-save"],
        families=FAMILIES,
    )
    run = build(config)
    learner = SlowToWrite(run._p.learner, tmp_path / "m" / "checkpoints", **slow)
    parts: Any = dataclasses.replace(run._p, learner=learner)
    return Runner(parts), learner


def commits(tmp_path: Path) -> list[str]:
    records, _ = read_journal(tmp_path / "m" / "buffer" / FILE_NAME)
    return [str(r["name"]) for r in records if r["t"] == "commit"]


async def test_training_goes_on_and_what_is_written_comes_into_force(tmp_path: Path) -> None:
    run, learner = mock_run(tmp_path, num_polls=2)
    await train(run)
    assert [e.removeprefix("rollout_") for e in learner.events] == [
        "step 0",
        "step 1",
        "begin rollout_000002, nothing in force",
        "step 2",
        "written rollout_000002, nothing in force",
        "step 3",
        "begin rollout_000004, rollout_000002 in force",
        "step 4",
        "written rollout_000004, rollout_000002 in force",
        "step 5",
        "begin rollout_000006, rollout_000004 in force",
        "written rollout_000006, rollout_000004 in force",
    ]
    assert commits(tmp_path) == ["rollout_000002", "rollout_000004", "rollout_000006"]
    assert read_state(find_snapshot(str(tmp_path / "m")))["clock"]["trained"] == 6


async def test_the_next_save_waits_for_the_one_before(tmp_path: Path) -> None:
    run, learner = mock_run(tmp_path, num_polls=100)
    await train(run)
    saves = [e for e in learner.events if not e.startswith("step")]
    assert [e.split(",")[0] for e in saves] == [
        f"{what} rollout_00000{n}" for n in (2, 4, 6) for what in ("begin", "written")
    ]


async def test_a_save_that_fails_stops_the_run_and_commits_nothing(tmp_path: Path) -> None:
    run, _ = mock_run(tmp_path, num_polls=2, broken=True)
    with pytest.raises(BaseException) as caught:
        await train(run)
    assert any(isinstance(e, LearnerError) for e in leaves(caught.value))
    assert commits(tmp_path) == [] and not (tmp_path / "m" / "checkpoints" / "latest").exists()


async def test_a_run_that_fails_keeps_the_snapshot_under_way(tmp_path: Path) -> None:
    run, learner = mock_run(tmp_path, num_polls=100)
    step = learner._inner.step

    async def fails(batch: Any) -> Any:
        if batch.rollout_id == 3:
            raise LearnerError("loss is not finite")
        return await step(batch)

    learner._inner.step = fails
    with pytest.raises(BaseException) as caught:
        await train(run)
    assert any("not finite" in str(e) for e in leaves(caught.value))
    assert find_snapshot(str(tmp_path / "m")).name == "rollout_000002" and commits(tmp_path) == [
        "rollout_000002"
    ]
