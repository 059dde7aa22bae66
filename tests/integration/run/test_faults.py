"""Faults a run meets: a step that must be refused, a disk that is full, a user in a hurry."""

from __future__ import annotations

import resource
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, entry_command, read_metrics, read_until, run_entry, start_entry

PRESET = ("--config", str(ROOT / "configs" / "presets" / "quickstart.yaml"))
SHORT = (
    "--sft-steps",
    "2",
    "--rollout-batch-size",
    "4",
    "--n-samples-per-prompt",
    "4",
    "--eval-max-prompts",
    "8",
)


@pytest.mark.slow
def test_a_loss_that_is_no_number_refuses_the_step_keeps_the_batch_and_stops_the_run(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    """The first step, at an absurd learning rate, wrecks the weights; the second one's loss is not
    a number."""
    done = run_entry(
        *PRESET,
        *SHORT,
        "--rm-type",
        "random",
        "--reward-threshold",
        "0",
        "--lr",
        "1e30",
        "--update-weights-interval",
        "4",
        "--async-buffer-size",
        "2",
        "--num-rollout",
        "8",
        "--runs-dir",
        str(tmp_path),
        "--name",
        "n",
        timeout=300,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (kept,) = (tmp_path / "n").glob("refused-batch-*.npz")
    assert "LearnerError" in done.stderr and str(kept) in done.stderr
    assert "LearnerError" in (tmp_path / "n" / "run.log").read_text()
    with np.load(kept, allow_pickle=False) as batch:
        assert int(batch["rollout_id"]) == len(read_metrics(tmp_path / "n", "train"))
        lengths = batch["s0_num_tokens"]
        assert len(lengths) == 16 and batch["s0_tokens"].shape == (lengths.sum(),)
        assert np.isfinite(batch["s0_advantages"]).all()


def test_a_full_disk_stops_the_run_and_says_so(tmp_path: Path, nothing_left_behind: None) -> None:
    """The kernel cuts files off at a size, as a full disk does."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    done = subprocess.run(
        entry_command(
            "--mock",
            "--num-rollout",
            "200",
            "--async-buffer-size",
            "2",
            "--runs-dir",
            str(tmp_path),
            "--name",
            "d",
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=small_files,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ReplayBufferError" in done.stderr or "File too large" in done.stderr


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_second_signal_leaves_at_once_and_still_clean(
    tmp_path: Path, nothing_left_behind: None, real: bool
) -> None:
    """A step of an hour (simulated), or an engine that still starts: nobody waits for that twice,
    or this test hits its time limit."""
    flags = (*PRESET, *SHORT) if real else ("--mock", "--mock-step-seconds", "3600")
    with start_entry(*flags, "--runs-dir", str(tmp_path), "--name", "u") as process:
        said = read_until(
            process, lambda line: line.startswith("engine ") and (real or ": start" in line)
        )
        while process.poll() is None:
            try:
                process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
        said += process.communicate()[0]
    assert process.returncode == 128 + signal.SIGINT, said
