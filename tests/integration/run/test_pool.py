"""A real engine is added to a job that runs, and the one it began with is drained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, read_metrics, read_until, run_module, start_entry

pytestmark = pytest.mark.slow
MODEL = f"tiny:{ROOT}/configs/models/tiny-qwen3.yaml"


def test_a_job_goes_on_with_another_engine_than_it_began_with(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    run = tmp_path / "r"
    process = start_entry(
        *("--hf-checkpoint", MODEL, "--num-rollout", "100000", "--rollout-batch-size", "4"),
        *("--prompt-data", "reasoning_gym:chain_sum", "--n-samples-per-prompt", "2"),
        *("--rollout-max-response-len", "16", "--runs-dir", str(tmp_path), "--name", "r"),
    )
    try:
        read_until(process, _trained(2))
        (first,) = [r["engine"] for r in read_metrics(run, "engine") if r["event"] == "start"]
        added = run_module("pipeline", "pool", str(run), "add", timeout=300)
        assert added.returncode == 0, added.stdout + added.stderr
        second = added.stdout.splitlines()[-1].split()[0]
        drained = run_module("pipeline", "pool", str(run), "drain", first, timeout=300)
        assert drained.returncode == 0, drained.stdout + drained.stderr
        trained = len(read_metrics(run, "train"))
        read_until(process, _trained(trained + 4))
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


def _trained(rollout: int) -> Callable[[str], bool]:
    """Does a line say that so many are?"""
    return lambda line: (
        line.startswith("rollout ") and int(line.split()[1].split("/")[0]) >= rollout
    )
