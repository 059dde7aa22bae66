"""A run that is loaded is the same run: flags, folder, records, checkpoints. Simulated engines and
learner, the real entry."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from buffers.journal import FILE_NAME
from stages.learn.mock import STATE_FILE
from tests.conftest import read_metrics, run_entry

MOCK = (
    "--mock",
    *("--rollout-batch-size", "2", "--n-samples-per-prompt", "2", "--mock-length-mean", "4"),
    *("--mock-step-seconds", "0.001", "--save-interval", "2"),
)


def begin(folder: Path, name: str, *flags: str) -> Path:
    done = run_entry(*MOCK, "--runs-dir", str(folder / "runs"), "--name", name, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / name


def rollouts(run: Path) -> list[int]:
    return [row["rollout_id"] for row in read_metrics(run, "train")]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_the_same_run_goes_on_wherever_it_saved(tmp_path: Path, nothing_left_behind: None) -> None:
    elsewhere = tmp_path / "elsewhere"
    run = begin(tmp_path, "a", "--num-rollout", "2", "--save", str(elsewhere), "--seed", "7")
    again = run_entry("--load", str(run), "--num-rollout", "4")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "--num-rollout 4 (was --num-rollout 2)" in again.stderr, "a changed flag is named"
    assert "--seed" not in again.stderr and "--name" not in again.stderr
    assert "done: 4 of 4 rollouts" in again.stdout
    again = run_entry("--load", str(elsewhere), "--num-rollout", "6")
    assert again.returncode == 0 and "done: 6 of 6 rollouts" in again.stdout, again.stderr
    assert rollouts(run) == list(range(6))
    assert (elsewhere / "latest").resolve().name == "rollout_000006"
    assert sorted(f.name for f in (tmp_path / "runs").iterdir()) == ["a", "latest"]
    flags = yaml.safe_load((run / "config.yaml").read_text())
    assert {"--seed 7", f"--save {elsewhere}", "--num-rollout 6"} <= set(flags)
    assert not [flag for flag in flags if flag.startswith("--load ")]

    before = tree(run), tree(elsewhere)
    finished = run_entry("--load", str(run), "--num-rollout", "3")
    assert finished.returncode != 0 and "6 rollouts are trained" in finished.stderr
    other = run_entry(*MOCK, "--runs-dir", str(tmp_path / "runs"), "--save", str(elsewhere))
    assert other.returncode == 2 and f"--load {run}" in other.stderr
    assert (tree(run), tree(elsewhere)) == before, "what is refused changes nothing"
    assert sorted(f.name for f in (tmp_path / "runs").iterdir()) == ["a", "latest"]


def test_a_resumed_runs_configuration_begins_a_run_of_its_own(tmp_path: Path) -> None:
    run = begin(tmp_path, "a", "--num-rollout", "2")
    assert run_entry("--load", str(run), "--num-rollout", "3").returncode == 0
    before = tree(run)
    again = run_entry("--config", str(run / "config.yaml"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "done: 3 of 3 rollouts" in again.stdout and tree(run) == before
    assert rollouts(tmp_path / "runs" / "a-2") == [0, 1, 2]


def test_a_checkpoint_begins_a_new_run_by_name(tmp_path: Path) -> None:
    run = begin(tmp_path, "a", "--num-rollout", "2")
    copy = tmp_path / "copy"
    (run / "checkpoints" / "rollout_000002").rename(copy)
    new = run_entry(
        *MOCK, *("--load", str(copy), "--name", "b", "--num-rollout", "5"),
        *("--runs-dir", str(tmp_path / "runs")),
    )  # fmt: skip
    assert new.returncode == 0, new.stdout + new.stderr
    assert "done: 5 of 5 rollouts (3 of them in this run, the others before it)" in new.stdout
    assert rollouts(tmp_path / "runs" / "b") == [2, 3, 4]


@pytest.mark.parametrize("asked", [(), ("--num-rollout", "2"), ("--lr", "1e-3")], ids=str)
def test_a_finished_run_says_so_before_anything_starts(
    tmp_path: Path, asked: tuple[str, ...]
) -> None:
    run = begin(tmp_path, "a", "--num-rollout", "2")
    before = tree(run)
    again = run_entry("--load", str(run), *asked)
    assert again.returncode == 0 and not again.stderr, again.stdout + again.stderr
    assert (
        "done: 2 of 2 rollouts" in again.stdout and "engine" not in again.stdout.split("\n", 1)[1]
    )
    assert f"To go on, ask for more: --load {run} --num-rollout 4\n" in again.stdout
    assert tree(run) == before
    (run / "summary.json").unlink()  # killed after its last checkpoint
    assert run_entry("--load", str(run), *asked).returncode == 0
    assert (run / "summary.json").exists()


def test_a_kill_before_the_journals_last_line_is_mended_first(tmp_path: Path) -> None:
    run = begin(tmp_path, "a", "--num-rollout", "2")
    journal = run / "buffer" / FILE_NAME
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    commit = max(i for i, line in enumerate(lines) if b'"commit"' in line)
    journal.write_bytes(b"".join(lines[:commit]))
    again = run_entry("--load", str(run))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing to do" not in again.stdout and "done: 2 of 2 rollouts" in again.stdout
    assert "nothing to do" in run_entry("--load", str(run)).stdout


def failing(flags: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    done = run_entry(*MOCK, "--runs-dir", str(folder / "runs"), "--name", "a", *flags)
    assert done.returncode != 0, done.stdout
    return done


@pytest.mark.parametrize("kind", ["build", "start"])
def test_a_failed_start_leaves_no_run(tmp_path: Path, kind: str) -> None:
    run = begin(tmp_path, "a", "--num-rollout", "1")
    if kind == "build":
        flags: tuple[str, ...] = ("--custom-rm-path", str(tmp_path / "none.py"))
    else:
        damaged = tmp_path / "copy"
        (run / "checkpoints" / "rollout_000001").rename(damaged)
        (damaged / "torch_dist" / STATE_FILE).write_text("{")
        flags = ("--load", str(damaged))
    failing(flags, tmp_path)
    assert sorted(f.name for f in (tmp_path / "runs").iterdir()) == ["a", "latest"]
    assert (tmp_path / "runs" / "latest").resolve() == run
