"""A run whose requests go through SGLang's router to two real engines, of which one dies."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, read_metrics, read_until, start_entry

pytestmark = pytest.mark.slow
pytest.importorskip("sglang_router")
MODEL = f"tiny:{ROOT}/configs/models/tiny-qwen3.yaml"
NUM_ROLLOUT = 12


def test_it_trains_and_an_engine_that_dies_comes_back_behind_the_router(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    run = tmp_path / "r"
    process = start_entry(
        *("--use-sglang-router", "--rollout-num-gpus", "2", "--hf-checkpoint", MODEL),
        *("--prompt-data", "reasoning_gym:chain_sum", "--num-rollout", str(NUM_ROLLOUT)),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "4"),
        *("--rollout-max-response-len", "32", "--async-buffer-size", "1"),
        *("--runs-dir", str(tmp_path), "--name", "r"),
    )
    with process:
        said = read_until(process, lambda line: line.startswith("rollout 3/"))
        _engines(process)[0].kill()
        said += process.communicate()[0]
    assert process.returncode == 0, said
    train, events = read_metrics(run, "train"), read_metrics(run, "engine")
    assert [r["rollout_id"] for r in train] == list(range(NUM_ROLLOUT))
    assert max(r["staleness_max"] for r in train) <= train[0]["staleness_bound"]
    assert all(abs(r["kl_rollout_old"]) < 0.05 for r in train)
    names = [r["event"] for r in events if r["event"] != "stats"]
    assert names[:3] == ["start", "start", "death"], said
    assert "Router" not in said and (run / "logs" / "sglang-router.log").exists()


def _engines(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [p for p in children if "sglang.launch_server" in " ".join(p.cmdline())]
