"""The examples with a preset of their own, on a real engine and a real learner."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT, read_metrics, run_entry

SAMPLES = {"guess_the_number": 16, "solver_verifier": 32}  # that 16 rollouts become


@pytest.mark.slow
@pytest.mark.parametrize("example", SAMPLES)
def test_it_trains(example: str, tmp_path: Path, nothing_left_behind: None) -> None:
    """Its tokens are trained with the very log-probs that the engine gave."""
    done = run_entry(
        *("--config", str(ROOT / "examples" / example / "preset.yaml"), "--sft-steps", "20"),
        *("--sft-decay-steps", "0", "--num-rollout", "2"),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "4"),
        *("--runs-dir", str(tmp_path), "--name", "s"),
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    train = read_metrics(tmp_path / "s", "train")
    assert len(train) == 2 and all(abs(row["kl_rollout_old"]) < 0.5 for row in train)
    assert {row["num_samples"] for row in train} == {SAMPLES[example]}
    assert all(row["num_tokens"] > 0 and row["samples_failed"] == 0 for row in train)
