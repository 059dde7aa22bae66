"""The whole pipeline on its real parts, as a user starts it: SGLang, Megatron, Ray, Arrow; a tiny
Qwen3, a few rollouts."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, num_trained, read_metrics, read_until, run_entry, start_entry

pytestmark = pytest.mark.slow
PRESET = ("--config", str(ROOT / "configs" / "presets" / "quickstart.yaml"))
SHORT = (
    "--sft-steps",
    "5",
    "--rollout-batch-size",
    "4",
    "--n-samples-per-prompt",
    "4",
    "--eval-max-prompts",
    "8",
)


def test_a_short_quickstart_trains_pushes_and_leaves_a_model_that_answers(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    done = run_entry(
        *PRESET,
        *SHORT,
        "--num-rollout",
        "6",
        "--eval-interval",
        "3",
        "--runs-dir",
        str(tmp_path),
        "--name",
        "q",
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "q"
    train = read_metrics(run, "train")
    assert [r["rollout_id"] for r in train] == list(range(6))
    assert max(r["staleness_max"] for r in train) <= train[0]["staleness_bound"]
    assert all(abs(r["kl_rollout_old"]) < 0.5 for r in train), (
        "the engine and the learner disagree about the policy"
    )
    assert {r["policy_version"] for r in train} == set(range(6))
    evals = read_metrics(run, "eval")
    assert evals and all(r["policy_version_min"] <= r["policy_version_max"] <= 6 for r in evals)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["push_count"] == summary["final_policy_version"] == 6
    assert summary["samples_trained"] == 6 * 4 * 4
    _answers(run / "checkpoints" / "latest" / "hf")


def _answers(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode("What is 1 + 1?")])
    out = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert out.shape[1] > ids.shape[1]


def test_an_engine_killed_in_mid_run_loses_nothing_and_the_run_resumes_after_a_signal(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    """Kill the only engine with -9 while it generates: requests wait for its restart.

    Then SIGTERM, then --load (with no other flag).
    """
    flags = (*PRESET, *SHORT, "--num-rollout", "8", "--runs-dir", str(tmp_path), "--name", "k")
    run = tmp_path / "k"
    process = start_entry(*flags)
    said = read_until(process, lambda _: num_trained(run) >= 2)
    engine = next(
        p
        for p in psutil.Process(process.pid).children(recursive=True)
        if "sglang.launch_server" in " ".join(p.cmdline())
    )
    engine.kill()
    said += read_until(process, lambda _: num_trained(run) >= 5)
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=180)
    assert process.returncode == 128 + signal.SIGTERM, said + rest
    assert [r["event"] for r in read_metrics(run, "engine") if r["event"] != "stats"] == [
        "start",
        "death",
        "restart",
    ]
    again = run_entry("--load", str(run), timeout=400)
    assert again.returncode == 0, again.stdout + again.stderr
    rows = read_metrics(run, "train")
    assert [r["rollout_id"] for r in rows] == list(range(8))
    assert [r["policy_version"] for r in rows] == list(range(8))
    assert json.loads((run / "summary.json").read_text())["samples_trained"] == 8 * 4 * 4
