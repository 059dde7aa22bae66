"""Evaluations of a simulated run: every data set that was named, each as it asks; and what is said
where one measures nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.conftest import read_metrics, run_entry, run_module

Run = Callable[..., CompletedProcess[str]]
SCORER = """
async def reward_func(args, sample, **kwargs):
    if sample.metadata.get("broken"):
        raise KeyError("no such entry")
    return {"score": 0.25, "acc": 1.0}
"""


def write(path: Path, metadata: dict[str, Any] | None = None) -> str:
    row = {"prompt": "1+2=", "label": "3", "metadata": metadata or {}}
    path.write_text((json.dumps(row) + "\n") * 8)
    return str(path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    write(tmp_path / "P.jsonl")
    (tmp_path / "rm.py").write_text(SCORER)

    def start(*flags: str) -> CompletedProcess[str]:
        base = "--mock --num-rollout 2 --rollout-batch-size 2 --n-samples-per-prompt 4"
        data = ["--prompt-data", str(tmp_path / "P.jsonl"), "--label-key", "label"]
        where = ["--async-buffer-size", "1", "--runs-dir", str(tmp_path), "--name", "m"]
        return run_entry(*base.split(), *data, *where, *flags)

    return start


def test_every_mention_of_a_data_set_counts(run: Run, tmp_path: Path) -> None:
    a, b = write(tmp_path / "A.jsonl"), write(tmp_path / "B.jsonl")
    named = ["--eval-prompt-data", "aime", a, "--eval-prompt-data", "gsm8k", b]
    done = run("--rm-type", "exact_match", "--eval-interval", "1", *named)
    assert done.returncode == 0, done.stderr
    rows = read_metrics(tmp_path / "m", "eval")
    assert {r["name"] for r in rows} == {"aime", "gsm8k"}
    assert {r["rollout_id"] for r in rows} == {0, 1, 2}


def test_a_file_is_evaluated_on_as_a_whole(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "A.jsonl"
    file.write_text('{"prompt": "1+2=", "label": "3"}\n' * 300)
    once = ("--eval-interval", "2", "--skip-eval-before-train", "--mock-length-mean", "2")
    done = run("--rm-type", "exact_match", "--eval-prompt-data", "a", str(file), *once)
    assert done.returncode == 0, done.stderr
    assert [r["num_samples"] for r in read_metrics(tmp_path / "m", "eval")] == [300]


def test_a_scorer_of_a_row_is_looked_at_before_anything_starts(run: Run, tmp_path: Path) -> None:
    known, unknown = (
        write(tmp_path / f"{name}.jsonl", {"rm_type": name}) for name in ("deepscaler", "deepscale")
    )
    evaluates = ("--rm-type", "exact_match", "--eval-interval", "1", "--eval-prompt-data")
    done = run(*evaluates, "a", known)
    assert done.returncode == 0, done.stderr
    assert {r["num_failed"] for r in read_metrics(tmp_path / "m", "eval")} == {0}
    refused = run(*evaluates, "a", unknown)
    assert refused.returncode == 2 and "rm_type 'deepscale'; expected one of" in refused.stderr


def test_where_every_sample_failed_there_is_an_error_and_no_mean(run: Run, tmp_path: Path) -> None:
    bad, good = write(tmp_path / "A.jsonl", {"broken": True}), write(tmp_path / "B.jsonl")
    done = run(
        *("--custom-rm-path", str(tmp_path / "rm.py"), "--eval-reward-key", "acc"),
        *("--eval-interval", "2", "--eval-prompt-data", "bad", bad, "good", good),
        "--skip-eval-before-train",
    )
    assert done.returncode == 0, done.stderr
    failed, scored = read_metrics(tmp_path / "m", "eval")
    assert (failed["rollout_id"], failed["name"], failed["reward_mean"]) == (2, "bad", None)
    assert failed["num_failed"] == failed["num_samples"] == 8
    cause = "all 8 samples failed, the first with: KeyError: 'no such entry'"
    assert failed["error"].startswith(cause) and "rm.py line 4" in failed["error"]
    assert (done.stdout + done.stderr).count(cause) == 1
    assert cause in (tmp_path / "m" / "run.log").read_text()
    assert (scored["name"], scored["reward_mean"], scored["error"]) == ("good", 1.0, None)


def test_data_sets_of_a_file_have_settings_of_their_own(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "eval.yaml"
    file.write_text(
        f"""eval:
  defaults: {{n_samples: 3}}
  datasets:
    - {{name: own, path: {write(tmp_path / "A.jsonl")}, rm_type: dapo, max_response_len: 2}}
    - {{name: flags, path: {write(tmp_path / "B.jsonl")}, n_samples_per_eval_prompt: 1}}
"""
    )
    done = run(
        *("--custom-rm-path", str(tmp_path / "rm.py"), "--eval-config", str(file)),
        *("--eval-interval", "2", "--skip-eval-before-train"),
    )
    assert done.returncode == 0, done.stderr
    own, flags = read_metrics(tmp_path / "m", "eval")
    assert (own["name"], own["num_samples"], own["reward_mean"]) == ("own", 24, -1.0)
    assert own["response_length_mean"] <= 2 < flags["response_length_mean"]
    assert (flags["name"], flags["num_samples"], flags["reward_mean"]) == ("flags", 8, 0.25)


def test_a_checkpoint_is_evaluated_alone_with_its_runs_flags(run: Run, tmp_path: Path) -> None:
    trained = run("--rm-type", "random", "--eval-label-key", "label")
    assert trained.returncode == 0, trained.stderr
    (version,) = {r["policy_version"] for r in read_metrics(tmp_path / "m", "push")[-1:]}
    data = ["--eval-prompt-data", "held-out", write(tmp_path / "A.jsonl")]
    # --mock, the scorer and --runs-dir are the run's own flags
    words = ["--load", str(tmp_path / "m"), *data, "--n-samples-per-eval-prompt", "4"]
    done = run_module("pipeline", "eval", *words, "--runs-dir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = read_metrics(tmp_path / "eval")
    assert (row["policy_version_min"], row["policy_version_max"]) == (version, version)
    assert (row["rollout_id"], row["num_prompts"], row["num_samples"]) == (2, 8, 32)
    assert row["checkpoint"].endswith("rollout_000002")
    assert row["reward_mean_low"] < row["reward_mean"] < row["reward_mean_high"]
    assert row["pass_at_1"] == row["pass_at_4"] == 0.0  # no random number is 1
    assert "held-out  0." in done.stdout
    assert not (tmp_path / "eval" / "checkpoints").exists()
    assert (tmp_path / "latest").resolve() == tmp_path / "m"


def test_one_that_measures_nothing_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "rm.py").write_text(SCORER)
    bad = write(tmp_path / "A.jsonl", {"broken": True})
    words = ["--load", "any", "--mock", "--eval-prompt-data", "bad", bad]
    scored = ["--custom-rm-path", str(tmp_path / "rm.py"), "--runs-dir", str(tmp_path)]
    done = run_module("pipeline", "eval", *words, *scored)
    assert done.returncode == 1
    assert "bad: all 8 samples failed, the first with: KeyError" in done.stdout
