"""`python -m pipeline eval` with a real engine: a checkpoint alone, under its own version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.models.resolve import resolve_checkpoint
from tests.conftest import ROOT, read_metrics, run_module

pytestmark = pytest.mark.slow
TINY = f"tiny:{ROOT}/configs/models/tiny-qwen3.yaml"


def test_a_checkpoint_is_served_scored_and_stamped(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    snapshot = tmp_path / "m" / "checkpoints" / "rollout_000007"
    shutil.copytree(resolve_checkpoint(TINY, seed=3), snapshot / "hf")
    clock = {"pushes": 4, "version_offset": 0, "trained": 7}
    (snapshot / "state.json").write_text(json.dumps({"state_version": 2, "clock": clock}))
    (snapshot / "DONE").write_text("7\n")
    data = tmp_path / "sums.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"{n}+1=", "label": str(n + 1)}) + "\n" for n in range(6))
    )
    done = run_module(
        *("pipeline", "eval", "--load", str(snapshot), "--eval-prompt-data", "sums", str(data)),
        *("--rm-type", "random", "--eval-max-response-len", "8", "--runs-dir", str(tmp_path)),
        *("--n-samples-per-eval-prompt", "4"),
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = read_metrics(tmp_path / "eval", "eval")
    assert (row["policy_version_min"], row["policy_version_max"]) == (4, 4)
    assert (row["rollout_id"], row["num_prompts"], row["num_failed"]) == (7, 6, 0)
    assert row["num_samples"] == 24 and 0 < row["response_length_mean"] <= 8
    assert row["checkpoint"] == str(snapshot / "hf")
    assert not read_metrics(tmp_path / "eval", "push")
