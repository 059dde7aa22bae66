"""A rank of a real learner is killed in the middle of a run that is told to outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from pipeline.run.record_file import current_records, read_records
from tests.chaos.real_faults import problems
from tests.chaos.victims import Victims
from tests.conftest import ROOT, entry_command, read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.alone]

ROLLOUTS = 9
FLAGS = (
    *("--config", str(ROOT / "configs" / "presets" / "quickstart.yaml"), "--sft-steps", "2"),
    *("--rollout-batch-size", "4", "--n-samples-per-prompt", "4", "--eval-interval", "1000000"),
    *("--num-rollout", str(ROLLOUTS), "--save-interval", "4", "--keep-trajectories"),
    *("--use-fault-tolerance", "--learner-restarts", "2"),
)


def test_a_killed_rank_is_replaced_the_buffer_goes_back_and_engines_stay(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    """Two ranks, each of which is killed once: before there is a checkpoint, and after."""
    run, output = tmp_path / "r", tmp_path / "output.txt"
    flags = (*FLAGS, "--actor-num-gpus-per-node", "2", "--runs-dir", str(tmp_path), "--name", "r")
    with output.open("w") as said:
        process = subprocess.Popen(
            entry_command(*flags), cwd=ROOT, stdout=said, stderr=subprocess.STDOUT
        )
    victims = Victims(process.pid)

    def rows_of(kind: str) -> int:
        return len(read_metrics(run, kind)) if (run / "metrics.jsonl").exists() else 0

    def until(count: int, kind: str = "train") -> None:
        late = time.monotonic() + 240
        while rows_of(kind) < count:
            assert process.poll() is None and time.monotonic() < late, output.read_text()
            time.sleep(0.05)

    try:
        until(1, "push")
        engines, ranks = victims.schedulers(), victims.ranks()
        assert len(engines) == 1 and len(ranks) == 2
        os.kill(ranks[1].pid, signal.SIGKILL)
        until(1, "learner")
        until(rows_of("train") + 5)  # beyond the first checkpoint
        assert victims.schedulers() == engines, output.read_text()
        os.kill(victims.ranks()[0].pid, signal.SIGKILL)
        until(2, "learner")
        assert victims.schedulers() == engines, output.read_text()
        assert not set(victims.ranks()) & set(ranks)
        assert process.wait(timeout=240) == 0, output.read_text()
    finally:
        victims.look()
        if process.poll() is None:
            process.kill()
        for left in victims.alive():
            left.kill()
    text = output.read_text()
    assert problems(run) == [], text
    entries, _ = read_journal(run / "buffer" / FILE_NAME)
    assert Ledger(entries).num_restores == 2
    assert not any(row["event"] in ("death", "restart") for row in read_metrics(run, "engine"))
    rows = current_records(read_records(run / "metrics.jsonl"))
    assert [r["rollout_id"] for r in rows if r["kind"] == "train"] == list(range(ROLLOUTS))
    first, second = (r for r in rows if r["kind"] == "learner")
    assert first["num_trained"] == 0 and second["num_trained"] in (4, 8)
    assert all("learner rank" in r["reason"] for r in (first, second))
