"""A run against SGLang servers that it did not start: they are given its weights, and are there,
idle and answering, when it has ended."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pipeline.core.engine_auth import engine_headers
from pipeline.models.resolve import resolve_checkpoint
from stages.engine.launch import Engine
from stages.engine.spec import EngineSpec
from tests.conftest import ROOT, read_metrics, read_until, run_entry, start_entry

pytestmark = pytest.mark.slow
MODEL = f"tiny:{ROOT}/configs/models/tiny-qwen3.yaml"
KEY = {"api_key": "sesame"}
NUM_ROLLOUT = 3


@asynccontextmanager
async def servers(folder: Path) -> AsyncIterator[list[Engine]]:
    """Two, of other weights than the run's: a seed of their own."""
    model = resolve_checkpoint(MODEL, seed=99)
    engines = [
        Engine(
            EngineSpec(
                index=index,
                model_path=model,
                log_path=folder / f"external-{index}.log",
                device="cpu",
                dtype="float32",
                concurrency=32,
                user=KEY,
            )
        )
        for index in range(2)
    ]
    try:
        async with asyncio.TaskGroup() as group:
            for engine in engines:
                group.create_task(engine.start(17, 300.0))
        yield engines
    finally:
        for engine in engines:
            await engine.stop()


def run(tmp_path: Path, *flags: str) -> Any:
    return run_entry(
        "--hf-checkpoint",
        MODEL,
        "--prompt-data",
        "reasoning_gym:chain_sum?min_digits=1&max_digits=1&min_terms=2&max_terms=2",
        "--num-rollout",
        str(NUM_ROLLOUT),
        "--rollout-batch-size",
        "4",
        "--n-samples-per-prompt",
        "2",
        "--rollout-max-response-len",
        "16",
        "--runs-dir",
        str(tmp_path),
        *flags,
        timeout=300,
    )


async def test_it_trains_against_them_and_leaves_them_as_engines_that_answer(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    async with servers(tmp_path) as engines:
        addresses = [engine.endpoint.removeprefix("http://") for engine in engines]
        keyed = ("--sglang-api-key", KEY["api_key"])
        flags = ("--rollout-external-engine-addrs", *addresses)
        refused = await asyncio.to_thread(run, tmp_path, *flags, "--name", "no-key")
        assert refused.returncode == 1 and "--sglang-api-key" in refused.stderr, refused.stderr
        done = await asyncio.to_thread(run, tmp_path, *flags, *keyed, "--name", "run")
        assert done.returncode == 0, done.stdout + done.stderr
        train = read_metrics(tmp_path / "run", "train")
        assert [r["rollout_id"] for r in train] == list(range(NUM_ROLLOUT))
        # of the learner's weights from the first token on
        assert all(abs(r["kl_rollout_old"]) < 0.01 for r in train)
        assert all(r["num_engines"] == 2 for r in read_metrics(tmp_path / "run", "push"))
        assert {r["engine"] for r in read_metrics(tmp_path / "run", "engine") if "engine" in r} >= {
            engine.endpoint for engine in engines
        }
        # another run takes them as the first one left them, and brings its own weights
        flags = (*flags, *keyed, "--seed", "5", "--name", "again")
        again = await asyncio.to_thread(run, tmp_path, *flags)
        assert again.returncode == 0, again.stdout + again.stderr
        assert all(
            abs(r["kl_rollout_old"]) < 0.01 for r in read_metrics(tmp_path / "again", "train")
        )
        async with aiohttp.ClientSession(headers=engine_headers(KEY)) as session:
            for engine in engines:
                assert engine.alive
                async with session.get(f"{engine.endpoint}/model_info") as answer:
                    assert (await answer.json())["weight_version"] == str(NUM_ROLLOUT)
                request = {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 4}}
                url = f"{engine.endpoint}/generate"  # a paused one does not answer
                async with asyncio.timeout(60), session.post(url, json=request) as answer:
                    assert answer.status == 200, await answer.text()


async def test_one_that_its_owner_starts_anew_is_taken_again(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    """It is killed, and comes back with weights and a label of its own."""
    async with servers(tmp_path) as engines:
        process = begin(tmp_path, engines)
        try:
            await says(process, "rollout 3/")
            engines[0].kill()
            await engines[0].start(99, 300.0)
            await says(process, f"engine {engines[0].endpoint}: restart")
            await says(process, "rollout ")
        finally:
            process.terminate()
            said, _ = await asyncio.to_thread(process.communicate, timeout=180)
        train = read_metrics(tmp_path / "run", "train")
        assert [r["rollout_id"] for r in train] == list(range(len(train)))
        assert all(abs(r["kl_rollout_old"]) < 0.01 for r in train)
        assert max(r["staleness_max"] for r in train) <= train[0]["staleness_bound"]
        async with aiohttp.ClientSession(headers=engine_headers(KEY)) as session:
            labels = []
            for engine in engines:
                async with session.get(f"{engine.endpoint}/model_info") as answer:
                    labels.append((await answer.json())["weight_version"])
        assert labels[0] == labels[1] and int(labels[0]) >= len(train) - 1, said


def begin(tmp_path: Path, engines: list[Engine]) -> subprocess.Popen[str]:
    return start_entry(
        *("--hf-checkpoint", MODEL, "--prompt-data", "reasoning_gym:chain_sum"),
        *("--num-rollout", "100000", "--rollout-batch-size", "4"),
        *("--n-samples-per-prompt", "2", "--rollout-max-response-len", "16"),
        *("--rollout-external-engine-addrs", *(e.endpoint for e in engines)),
        *("--sglang-api-key", KEY["api_key"], "--engine-restarts", "8"),
        *("--runs-dir", str(tmp_path), "--name", "run"),
    )


async def says(process: subprocess.Popen[str], start: str) -> None:
    """Waits for a line that begins so."""
    await asyncio.to_thread(read_until, process, lambda line: line.startswith(start))
