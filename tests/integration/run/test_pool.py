"""A real engine is added to a job that runs, and the one it began with is drained."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, entry_command, read_metrics, run_module

pytestmark = pytest.mark.slow
MODEL = f"tiny:{ROOT}/configs/models/tiny-qwen3.yaml"


def test_a_job_goes_on_with_another_engine_than_it_began_with(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    run = tmp_path / "r"
    process = subprocess.Popen(
        entry_command(
            *("--hf-checkpoint", MODEL, "--num-rollout", "100000", "--rollout-batch-size", "4"),
            *("--prompt-data", "reasoning_gym:chain_sum", "--n-samples-per-prompt", "2"),
            *("--rollout-max-response-len", "16", "--runs-dir", str(tmp_path), "--name", "r"),
        ),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        _wait_for(process, 2)
        (first,) = [r["engine"] for r in read_metrics(run, "engine") if r["event"] == "start"]
        added = run_module("pipeline", "pool", str(run), "add", timeout=300)
        assert added.returncode == 0, added.stdout + added.stderr
        second = added.stdout.splitlines()[-1].split()[0]
        drained = run_module("pipeline", "pool", str(run), "drain", first, timeout=300)
        assert drained.returncode == 0, drained.stdout + drained.stderr
        trained = len(read_metrics(run, "train"))
        _wait_for(process, trained + 4)
        listed = run_module("pipeline", "pool", str(run)).stdout.split()
        assert second in listed and first not in listed and "serving" in listed
    finally:
        process.terminate()
        process.communicate(timeout=180)
    train = read_metrics(run, "train")
    assert [r["rollout_id"] for r in train] == list(range(len(train)))
    assert max(r["staleness_max"] for r in train) <= train[0]["staleness_bound"]
    # the second engine samples by the learner's weights, not by those it was started with
    assert all(abs(r["kl_rollout_old"]) < 0.01 for r in train)


def _wait_for(process: subprocess.Popen[str], rollout: int) -> None:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("rollout ") and int(line.split()[1].split("/")[0]) >= rollout:
            return
    raise AssertionError("".join(lines))
