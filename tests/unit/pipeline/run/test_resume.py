"""--load goes on with the run that saved, or says what would."""

from __future__ import annotations

from pathlib import Path

import pytest

from buffers.journal import FILE_NAME, Journal
from configs.schema import RunConfig
from pipeline.core.errors import CheckpointError, ConfigError
from pipeline.run.resume import resume_point
from pipeline.run.rundir import RunDir, create_run_dir
from pipeline.run.save_folder import check_save_folder, claim_save_folder
from tests.unit.pipeline.run.test_snapshot import save


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = create_run_dir(tmp_path / "runs", "q")
    run.config.touch()
    run.buffer.mkdir()
    return run


def write_journal(run: RunDir, *commits: tuple[int, str]) -> None:
    journal = Journal(run.buffer / FILE_NAME)
    for num_trained, name in commits:
        journal.append({"t": "commit", "r": num_trained, "name": name})
    journal.close()


async def test_the_newest_of_both_folders_is_taken(tmp_path: Path, run: RunDir) -> None:
    write_journal(run)
    elsewhere = tmp_path / "elsewhere"
    config = RunConfig(load=str(run.path), save=str(elsewhere))
    found = resume_point(config)
    assert found.home == run and found.snapshot is None and found.ledger is not None
    older = await save(run.checkpoints, 2)
    assert resume_point(config).snapshot == older
    newer = await save(elsewhere, 4)
    assert resume_point(config).snapshot == newer
    claim_save_folder(str(elsewhere), run)
    for load in (elsewhere, newer):  # --save need not be said then
        found = resume_point(RunConfig(load=str(load)))
        assert (found.home, found.snapshot) == (run, newer)
    # the very checkpoint that was asked for, though it is not the newest
    assert resume_point(RunConfig(load=str(older), save=str(elsewhere))).snapshot == older


async def test_a_save_that_is_not_there_is_not_silently_begun_again(
    tmp_path: Path, run: RunDir
) -> None:
    write_journal(run, (4, "rollout_000004"))
    with pytest.raises(CheckpointError, match=r"rollout_000004 was saved.*--save FOLDER"):
        resume_point(RunConfig(load=str(run.path), save=str(tmp_path / "other")))
    older = await save(run.checkpoints, 2)
    with pytest.raises(CheckpointError, match=f"or go on from an older one: --load {older}"):
        resume_point(RunConfig(load=str(run.path)))
    assert resume_point(RunConfig(load=str(older))).snapshot == older
    await save(tmp_path / "moved", 4)
    found = resume_point(RunConfig(load=str(run.path), save=str(tmp_path / "moved")))
    assert found.snapshot == tmp_path / "moved" / "rollout_000004"


async def test_without_its_run_a_checkpoint_begins_a_new_one_only_by_name(tmp_path: Path) -> None:
    snapshot = await save(tmp_path / "copied", 4)
    with pytest.raises(CheckpointError, match=r"--load RUN_DIR --save .*--name NEW_NAME"):
        resume_point(RunConfig(load=str(snapshot)))
    found = resume_point(RunConfig(load=str(snapshot), name="new"))
    assert found.snapshot == snapshot and found.home is None and found.ledger is None


def test_without_its_journal_a_run_does_not_go_on(run: RunDir) -> None:
    with pytest.raises(CheckpointError, match=r"journal.log is not there.*--initial-megatron"):
        resume_point(RunConfig(load=str(run.path)))


def test_a_run_goes_on_under_its_own_name(run: RunDir) -> None:
    write_journal(run)
    assert resume_point(RunConfig(load=str(run.path), name="q")).home == run
    second = create_run_dir(run.path.parent, "q")
    second.config.touch()
    second.buffer.mkdir()
    write_journal(second)
    assert resume_point(RunConfig(load=str(second.path), name="q")).home == second  # q-2
    with pytest.raises(ConfigError, match=r"--name other with --load .*its own name, q\."):
        resume_point(RunConfig(load=str(run.path), name="other"))


async def test_two_runs_do_not_share_a_save_folder(tmp_path: Path, run: RunDir) -> None:
    folder = tmp_path / "elsewhere"
    check_save_folder(str(folder), None)
    claim_save_folder(str(folder), run)
    check_save_folder(str(folder), run)
    other = create_run_dir(tmp_path / "runs", "other")
    other.config.touch()
    for home in (None, other):
        with pytest.raises(ConfigError, match=f"--load {run.path}"):
            check_save_folder(str(folder), home)
    run.path.rename(run.path.with_name("gone"))  # it never saved: the folder is free
    check_save_folder(str(folder), None)
    await save(folder, 2)
    with pytest.raises(ConfigError, match=r"Give another folder$"):
        check_save_folder(str(folder), None)
    moved = RunDir(tmp_path / "moved" / "q")
    check_save_folder(str(folder), moved)  # the same run, that was moved
    (folder / "run.json").unlink()
    with pytest.raises(ConfigError, match="checkpoints of another run"):
        check_save_folder(str(folder), None)
