"""Rollout workers on real parts: two of them ask SGLang, one is killed in the middle."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.conftest import ROOT, num_trained, read_metrics, start_entry
from tests.integration.workers.test_rollout_workers import totals, until, workers_of

pytestmark = [pytest.mark.slow, pytest.mark.alone]
PRESET = ("--config", str(ROOT / "configs" / "presets" / "quickstart.yaml"))
SHORT = (
    *("--sft-steps", "5", "--rollout-batch-size", "4", "--n-samples-per-prompt", "4"),
    *("--eval-max-prompts", "8", "--num-rollout", "8", "--num-rollout-workers", "2"),
)


def test_two_workers_feed_the_learner_and_one_that_is_killed_loses_nothing(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    process = start_entry(*PRESET, *SHORT, "--runs-dir", str(tmp_path), "--name", "w")
    run = tmp_path / "w"
    until(lambda: num_trained(run) >= 2, process)
    victim = workers_of(process.pid)[0]
    victim.send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    train = read_metrics(run, "train")
    assert [r["rollout_id"] for r in train] == list(range(8))
    assert {r["policy_version"] for r in train} == set(range(8))
    assert max(r["staleness_max"] for r in train) <= train[0]["staleness_bound"]
    assert all(abs(r["kl_rollout_old"]) < 0.5 for r in train)
    assert [r["event"] for r in read_metrics(run, "engine") if r["event"] != "stats"] == ["start"]
    found = totals(run)
    assert (found["lost"], found["duplicated"], found["trained"]) == (0, 0, 8 * 4)
    assert f"(pid {victim.pid}) died" in (run / "run.log").read_text()
