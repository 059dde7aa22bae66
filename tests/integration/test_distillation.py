"""On-policy distillation on real parts: a policy engine, a teacher engine, a learner."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT, read_metrics, run_entry

pytestmark = pytest.mark.slow

MODEL = ("--hf-checkpoint", f"tiny:{ROOT / 'configs' / 'models' / 'quickstart-qwen3.yaml'}", "--rollout-max-response-len", "8")


def run(folder: Path, name: str, *flags: str) -> Path:
    done = run_entry(*MODEL, *flags, "--runs-dir", str(folder), "--name", name, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / name


def test_the_policy_comes_nearer_to_its_teacher(tmp_path: Path, warm_quickstart: Path, nothing_left_behind: None) -> None:
    """The teacher was warmed up on words; the student was not, and gets no reward."""
    words = str(ROOT / "configs" / "presets" / "quickstart-warmup.jsonl")
    student = run(
        tmp_path, "student", "--prompt-data", words, "--num-rollout", "12", "--rollout-batch-size", "16", "--n-samples-per-prompt", "4",
        "--lr", "0.004", "--use-opd", "--opd-teacher-load", str(warm_quickstart),
    )  # fmt: skip
    train = read_metrics(student, "train")
    kl = [r["opd_kl"] for r in train]
    assert kl[0] > 0.5 and sum(kl[-3:]) / 3 < 0.8 * kl[0], kl
    assert {r["reward_mean"] for r in train} == {0.0}
    assert (student / "logs" / "teacher.log").stat().st_size > 0
