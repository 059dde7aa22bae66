"""Real runs that must learn something: from rollouts that are versions old, and from a teacher's
engine."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from benchmarks.common import train
from benchmarks.off_policy import warm_model
from benchmarks.off_policy_runs import Cell, Protocol
from tests.conftest import ROOT, read_metrics, run_entry

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def warm_quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's model after its warm-up, as a Hugging Face folder."""
    return warm_model(tmp_path_factory.mktemp("warm"))


def test_tis_learns_from_rollouts_that_are_versions_old(
    warm_quickstart: Path, nothing_left_behind: None
) -> None:
    """The short version of benchmarks/off_policy.py. What is stale is noisy: the best five rollouts
    in a row count, not the last."""
    protocol = Protocol(model="", rollouts=30, eval_every=30, eval_prompts=32)
    cell = Cell(method="tis", staleness=8, lr=0.0007, seed=7)
    rows = train(*protocol.flags(cell, warm_quickstart))["train"]
    rewards = [r["reward_mean"] for r in rows]
    assert [r["staleness_mean"] for r in rows] == [min(r, 8) for r in range(30)]
    first, *later = (fmean(rewards[i : i + 5]) for i in range(len(rewards) - 4))
    assert max(later) > first + 0.2, rewards


def test_a_student_comes_nearer_to_its_teacher(
    tmp_path: Path, warm_quickstart: Path, nothing_left_behind: None
) -> None:
    """On-policy distillation: the teacher was warmed up on words; the student was not, and gets no
    reward."""
    done = run_entry(
        "--hf-checkpoint",
        f"tiny:{ROOT / 'configs' / 'models' / 'quickstart-qwen3.yaml'}",
        "--rollout-max-response-len",
        "8",
        "--prompt-data",
        str(ROOT / "configs" / "presets" / "quickstart-warmup.jsonl"),
        "--num-rollout",
        "12",
        "--rollout-batch-size",
        "16",
        "--n-samples-per-prompt",
        "4",
        "--lr",
        "0.004",
        "--use-opd",
        "--opd-teacher-load",
        str(warm_quickstart),
        "--runs-dir",
        str(tmp_path),
        "--name",
        "student",
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_metrics(tmp_path / "student", "train")
    kl = [r["opd_kl"] for r in rows]
    assert kl[0] > 0.5 and sum(kl[-3:]) < 0.9 * sum(kl[:3]), kl
    assert {r["reward_mean"] for r in rows} == {0.0}
    assert (tmp_path / "student" / "logs" / "teacher.log").stat().st_size > 0
