"""Half a pipeline at a time, and a run made again from what it kept: batches bit by bit, and with a
real learner the losses too."""

from __future__ import annotations

from pathlib import Path

import pytest

from buffers.dump import KeptRun, read_take
from tests.conftest import ROOT, read_metrics, run_entry, run_module
from tests.integration.run.test_mock_run import FAST

KEEP = (*FAST, "--async-buffer-size", "2", "--num-rollout", "8", "--keep-trajectories")


def run(tmp_path: Path, name: str, *flags: str) -> Path:
    done = run_entry(*flags, "--runs-dir", str(tmp_path), "--name", name)
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path / name


def digests(path: Path) -> list[str]:
    return [r["batch_digest"] for r in read_metrics(path, "train")]


def test_rollouts_without_a_learner_then_a_learner_without_engines(tmp_path: Path) -> None:
    files = str(tmp_path / "data" / "rollout_{rollout_id}.arrow")
    flags = (*FAST, "--num-rollout", "5", "--async-buffer-size", "1")
    generated = run(
        tmp_path, "rollouts", *flags, "--debug-rollout-only", "--save-debug-rollout-data", files
    )
    assert not read_metrics(generated, "push") and not list(
        (generated / "checkpoints").glob("rollout_*")
    )
    take = read_take(tmp_path / "data" / "rollout_3.arrow")
    assert (take.rollout_id, take.policy_version, len(take.groups)) == (3, 0, 4)
    trained = run(tmp_path, "train", *flags, "--load-debug-rollout-data", files)
    assert [r["reward_mean"] for r in read_metrics(trained, "train")] == [
        r["reward_mean"] for r in read_metrics(generated, "train")
    ]
    assert {r["samples_generated"] for r in read_metrics(trained, "train")} == {0}


def test_a_warm_up_that_is_left_out_is_said_to_be(tmp_path: Path) -> None:
    flags = (*FAST, "--num-rollout", "1", "--runs-dir", str(tmp_path), "--sft-steps", "7")
    for name, more, says in (("half", ("--debug-rollout-only",), True), ("whole", (), False)):
        done = run_entry(*flags, "--name", name, *more)
        assert done.returncode == 0, done.stderr
        said = "the warm-up (--sft-steps 7) is left out"
        assert (said in done.stderr) == says
        assert (said in (tmp_path / name / "run.log").read_text()) == says


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--max-times-sampled", "2", "--buffer-selector", "prioritized"),
        ("--stale-policy", "retry"),
    ],
)
def test_a_kept_run_is_made_again_bit_by_bit(tmp_path: Path, more: tuple[str, ...]) -> None:
    kept = run(tmp_path, "kept", *KEEP, "--mock-length-sigma", "1.2", *more)
    again = run(tmp_path, "again", *KEEP, *more, "--load-debug-rollout-data", str(kept))
    assert digests(again) == digests(kept)
    checked = run_module("pipeline", "buffer", str(kept), "audit")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert (
        "8 takes made again, 0 differ" in checked.stdout
        and "8 of 8 made again bit by bit" in checked.stdout
    )


def test_another_decision_than_the_one_then_is_found(tmp_path: Path) -> None:
    kept = run(
        tmp_path,
        "kept",
        *KEEP,
        "--max-staleness",
        "4",
        "--mock-length-sigma",
        "1.2",
        "--buffer-selector",
        "lifo",
    )
    config = kept / "config.yaml"
    config.write_text(config.read_text().replace("lifo", "fifo"))
    checked = run_module("pipeline", "buffer", str(kept), "audit")
    assert checked.returncode == 2 and "now it would be" in checked.stderr, (
        checked.stdout + checked.stderr
    )


def test_a_rollout_of_another_size_is_refused(tmp_path: Path) -> None:
    kept = run(tmp_path, "kept", *KEEP)
    assert len(KeptRun(kept / "buffer")) == 8
    done = run_entry(
        *KEEP,
        "--rollout-batch-size",
        "3",
        "--load-debug-rollout-data",
        str(kept),
        "--runs-dir",
        str(tmp_path),
    )
    assert (
        done.returncode == 2
        and "rollout 0 has 4 groups that are trained on for the first time, this run takes 3"
        in done.stderr
    )


@pytest.mark.slow
def test_losses_of_a_kept_real_run_are_equal_to_the_bit(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    """SGLang and Megatron, float32, one rank."""
    flags = (
        "--config",
        str(ROOT / "configs" / "presets" / "quickstart.yaml"),
        "--num-rollout",
        "4",
        "--rollout-batch-size",
        "4",
        "--n-samples-per-prompt",
        "4",
        "--sft-steps",
        "3",
        "--eval-interval",
        "1000000",
        "--keep-trajectories",
    )
    kept = run(tmp_path, "kept", *flags)
    again = run(tmp_path, "again", *flags, "--load-debug-rollout-data", str(kept))
    then, now = read_metrics(kept, "train"), read_metrics(again, "train")
    assert digests(again) == digests(kept)
    for name in ("loss", "grad_norm", "kl_rollout_old", "entropy"):
        assert [r[name] for r in now] == [r[name] for r in then], name
    assert (again / "checkpoints" / "latest").exists()
