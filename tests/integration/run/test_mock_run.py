"""The whole pipeline as a user starts it, with simulated engines and learner."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from tests.conftest import ROOT, num_trained, read_metrics, read_until, run_entry, start_entry
from tests.promised_fields import SUMMARY_FIELDS, TRAIN_FIELDS

FAST = (
    "--mock",
    "--rollout-batch-size",
    "4",
    "--n-samples-per-prompt",
    "4",
    "--mock-step-seconds",
    "0.01",
    "--mock-seconds-per-token",
    "0.0001",
)


def test_a_run_leaves_what_it_promises(tmp_path: Path, nothing_left_behind: None) -> None:
    done = run_entry(
        *FAST,
        "--num-rollout",
        "12",
        "--async-buffer-size",
        "2",
        "--runs-dir",
        str(tmp_path),
        "--name",
        "m",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "m"
    train = read_metrics(run, "train")
    assert [r["rollout_id"] for r in train] == list(range(12))
    assert all(r.keys() >= TRAIN_FIELDS for r in train)
    lags = [
        [r[f"event_loop_lag_seconds_{which}"] for which in ("p50", "p99", "max")] for r in train
    ]
    assert all(None in lag or 0 <= lag[0] <= lag[1] <= lag[2] for lag in lags)
    assert any(None not in lag for lag in lags)  # a rollout may be over before the first tick
    assert max(r["staleness_max"] for r in train) <= train[0]["staleness_bound"] == 4
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary) == SUMMARY_FIELDS
    assert summary["num_rollouts"] == summary["final_policy_version"] == summary["push_count"] == 12
    assert summary["samples_trained"] == 12 * 4 * 4
    assert summary["samples_discarded"] == 0
    for name in ("config.yaml", "reward.svg", "report.html"):
        assert (run / name).stat().st_size > 0


def test_fixed_staleness_is_exact(tmp_path: Path, nothing_left_behind: None) -> None:
    flags = ("--async-buffer-size", "3", "--num-rollout", "10", "--rollout-num-gpus", "2")
    evaluation = ("--eval-prompt-data", "held-out", "reasoning_gym:spell_backward")
    done = run_entry(
        *FAST,
        *flags,
        *("--fixed-staleness", "--mock-push-seconds", "0.02"),
        *(*evaluation, "--eval-interval", "1", "--eval-max-prompts", "8"),
        *("--runs-dir", str(tmp_path), "--name", "m"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for row in read_metrics(tmp_path / "m", "train"):
        wanted = min(row["rollout_id"], 3)
        assert row["staleness_mean"] == row["staleness_max"] == wanted, row
    evaluations = read_metrics(tmp_path / "m", "eval")
    assert len(evaluations) == 11
    for row in evaluations:  # of the weights that they are called after, and of no others
        assert row["policy_version_min"] == row["policy_version_max"] == row["rollout_id"]
    audit = [sys.executable, "-m", "pipeline", "buffer", str(tmp_path / "m"), "audit"]
    found = subprocess.run(audit, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("overlap", [True, False])
def test_the_learner_trains_while_a_push_is_under_way(tmp_path: Path, overlap: bool) -> None:
    flags = ("--async-buffer-size", "2", "--num-rollout", "6", "--rollout-num-gpus", "4")
    own = ("--mock-push-seconds", "0.2", *(() if overlap else ("--no-overlap-push",)))
    done = run_entry(*FAST, *flags, *own, "--runs-dir", str(tmp_path), "--name", "m")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_metrics(tmp_path / "m")
    pushes, train = ([r for r in rows if r["kind"] == kind] for kind in ("push", "train"))
    assert [r["policy_version"] for r in pushes] == [1, 2, 3, 4, 5, 6]
    order = [(r["kind"], r["rollout_id"]) for r in rows if r["kind"] in ("push", "train")]
    assert order == [(kind, i) for i in range(6) for kind in ("train", "push")]
    if overlap:  # the first is only staged, the others wait for the one before
        assert pushes[0]["trainer_seconds"] < 0.4 <= pushes[0]["seconds"]
    else:
        assert all(r["trainer_seconds"] >= r["seconds"] for r in pushes)
    assert max(r["staleness_max"] for r in train) <= train[0]["staleness_bound"]


def test_a_run_that_is_stopped_saves_when_the_push_under_way_is_through(tmp_path: Path) -> None:
    process = start_entry(
        *FAST,
        *("--async-buffer-size", "2", "--num-rollout", "500", "--mock-push-seconds", "0.3"),
        *("--rollout-num-gpus", "2", "--runs-dir", str(tmp_path), "--name", "m"),
    )
    with process:
        # a push lasts longer than all else does
        read_until(process, lambda line: line.startswith("rollout 3/"))
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    assert "saved " in rest, rest
    state = json.loads((tmp_path / "m" / "checkpoints" / "latest" / "state.json").read_text())
    assert state["clock"]["pushes"] == state["clock"]["trained"] >= 3
    assert len(read_metrics(tmp_path / "m", "push")) == state["clock"]["pushes"]


def test_rewards_that_are_all_equal_are_warned_of_at_the_time_and_at_the_end(
    tmp_path: Path,
) -> None:
    """Loss 0 and exit code 0 look like a success."""
    function = tmp_path / "constant.py"
    function.write_text("async def reward_func(args, sample, **kwargs):\n    return 0.0\n")
    own = ("--custom-rm-path", str(function), "--num-rollout", "4")
    done = run_entry(*FAST, *own, "--runs-dir", str(tmp_path), "--name", "m")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning: in the last 3 rollouts all rewards are equal (0.000)" in done.stderr
    assert "Nothing was learned from rewards" in done.stdout
    summary = json.loads((tmp_path / "m" / "summary.json").read_text())
    assert summary["rollouts_with_equal_rewards"] == 4


FILTER = """
def buffer_filter(args, rollout_id, buffer, num_samples):
    chosen = buffer[::-1][:num_samples]
    return [group for group in buffer if any(group is c for c in chosen)]
"""


@pytest.mark.parametrize(
    "flags",
    [
        ("--max-times-sampled", "2", "--buffer-selector", "prioritized"),
        (
            "--max-times-sampled",
            "4",
            "--samples-per-insert",
            "2",
            "--max-staleness",
            "5",
            "--buffer-selector",
            "uniform",
        ),
        ("--stale-policy", "drop", "--mock-length-sigma", "1.5"),
        ("--stale-policy", "retry", "--mock-length-sigma", "1.5"),
        ("--buffer-filter-path", "FILTER"),
        ("--min-size-to-sample", "12"),
    ],
    ids=lambda flags: "".join(flags[:2]),
)
def test_every_way_to_fill_a_rollout_trains_to_the_end_and_adds_up(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    (tmp_path / "f.py").write_text(FILTER)
    words = [str(tmp_path / "f.py") if word == "FILTER" else word for word in flags]
    done = run_entry(
        *FAST,
        *words,
        "--num-rollout",
        "15",
        "--async-buffer-size",
        "2",
        "--runs-dir",
        str(tmp_path),
        "--name",
        "m",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    train = read_metrics(tmp_path / "m", "train")
    assert len(train) == 15 and all(r["staleness_max"] <= r["staleness_bound"] for r in train)
    ledger = Ledger(read_journal(tmp_path / "m" / "buffer" / FILE_NAME)[0])
    totals, fresh = ledger.totals(), 4 if "--max-times-sampled" not in flags else 2
    assert (totals["trained"], totals["lost"], totals["duplicated"], totals["pending"]) == (
        15 * fresh,
        0,
        0,
        0,
    )
    summary = json.loads((tmp_path / "m" / "summary.json").read_text())
    assert (
        totals["replayed"]
        == summary["groups_replayed"]
        == sum(r["num_groups_replayed"] for r in train)
    )
    assert bool(totals["replayed"]) == ("--max-times-sampled" in flags)
    assert totals["removed"] * 4 == summary.get("samples_removed_stale", 0)


def test_k0_is_on_policy(tmp_path: Path) -> None:
    done = run_entry(
        *FAST,
        "--num-rollout",
        "6",
        "--async-buffer-size",
        "0",
        "--runs-dir",
        str(tmp_path),
        "--name",
        "sync",
    )
    assert done.returncode == 0, done.stderr
    assert {r["staleness_max"] for r in read_metrics(tmp_path / "sync", "train")} == {0}


def test_failing_requests_are_counted_and_never_trained(tmp_path: Path) -> None:
    done = run_entry(
        *FAST,
        "--num-rollout",
        "8",
        "--async-buffer-size",
        "2",
        "--mock-failure-rate",
        "0.2",
        "--runs-dir",
        str(tmp_path),
        "--name",
        "f",
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "f" / "summary.json").read_text())
    assert summary["samples_failed"] > 0
    assert summary["samples_trained"] == 8 * 4 * 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_where_it_was(
    tmp_path: Path, number: signal.Signals, nothing_left_behind: None
) -> None:
    flags = (
        *FAST,
        "--num-rollout",
        "60",
        "--async-buffer-size",
        "2",
        "--mock-step-seconds",
        "0.05",
        "--runs-dir",
        str(tmp_path),
        "--name",
        "s",
    )
    process = start_entry(*flags)
    # plain output: a line a rollout
    said = read_until(process, lambda _: num_trained(tmp_path / "s") >= 5)
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said + rest
    trained = len(read_metrics(tmp_path / "s", "train"))
    assert 5 <= trained < 60
    again = run_entry(*flags, "--load", str(tmp_path / "s"))
    assert again.returncode == 0, again.stdout + again.stderr
    rows = read_metrics(tmp_path / "s", "train")
    assert [r["rollout_id"] for r in rows] == list(range(60))
    versions = [r["policy_version"] for r in rows]
    assert versions == sorted(versions)


def test_a_synchronous_run_repeats_itself(tmp_path: Path) -> None:
    """Same seed, same run, whatever the timing: --deterministic-mode with K = 0. Another seed is
    another run."""
    rows, trouble = {}, ("--mock-failure-rate", "0.1", "--dynamic-sampling-filter-path", "zero_std")
    extra = (*trouble, "--num-steps-per-rollout", "4", "--buffer-selector", "lifo")
    for name, seed, pace in (("a", "7", "0.00005"), ("b", "7", "0.0004"), ("c", "8", "0.00005")):
        flags = (
            "--num-rollout",
            "4",
            "--async-buffer-size",
            "0",
            "--deterministic-mode",
            "--runs-dir",
            str(tmp_path),
            "--name",
            name,
        )
        done = run_entry(
            *FAST,
            *extra,
            *flags,
            "--seed",
            seed,
            "--mock-seconds-per-token",
            pace,
            "--group-max-retries",
            "3",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        timed = (
            "seconds",
            "time",
            "idle",
            "per_second",
            "bytes",
            "samples_generated",
            "samples_failed",
        )
        rows[name] = [
            {k: v for k, v in row.items() if not any(t in k for t in timed)}
            for row in read_metrics(tmp_path / name, "train")
        ]
    assert rows["a"] == rows["b"]
    assert all(row["batch_digest"] for row in rows["a"])
    assert [row["batch_digest"] for row in rows["a"]] != [row["batch_digest"] for row in rows["c"]]
