"""Families behind a real SGLang server on this machine: its log-probs are transformers', before and
after a push from Megatron.

Two families by default (each is a server's start, some 20 seconds); SLIPSTREAM_ALL_FAMILIES=1 runs
every one that SGLang serves on a CPU."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch

from stages.engine.launch import Engine
from stages.engine.pool import SGLangPool
from stages.publish.distributed import DistributedTransport
from stages.publish.sender import BroadcastSender
from tests.integration.engine.engine_world import (
    CLUSTER,
    Answer,
    Threaded,
    engine_spec,
    log_probs,
    request,
)
from tests.integration.learn import learner_cases as cases
from tests.integration.learn.family_cases import make_family

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PROMPT = list(range(40, 60))
# Two at a time: most of a server's start is one core's work. Not deepseek_v3: its attention is not
# served here (docs/models.md).
ON_CPU = [("glm4", "glm4_moe"), ("qwen2", "llama"), ("qwen3_moe",)]


async def generate(http: aiohttp.ClientSession, endpoint: str, key: str) -> Answer:
    async with http.post(f"{endpoint}/generate", json=request(PROMPT, key, 24)) as response:
        assert response.status == 200, await response.text()
        return Answer.of(PROMPT, await response.json())


@pytest.mark.parametrize(
    "names", ON_CPU if os.environ.get("SLIPSTREAM_ALL_FAMILIES") else ON_CPU[:1]
)
async def test_families_are_served_and_take_pushed_weights(
    names: tuple[str, ...], tmp_path: Path, nothing_left_behind: None
) -> None:
    torch.set_num_threads(1)
    pools = {}
    for name in names:
        make_family(name, tmp_path / name / "model")
        engine = Engine(engine_spec(tmp_path / name, 0))
        pools[name] = SGLangPool(
            [engine], concurrency=8, max_restarts=0, start_timeout_seconds=240.0
        )
    try:
        async with asyncio.TaskGroup() as group:
            for pool in pools.values():
                group.create_task(pool.start())
        for name, pool in pools.items():
            await check(pool, tmp_path / name)
    finally:
        for pool in pools.values():
            await pool.close()


async def check(pool: SGLangPool, folder: Path) -> None:
    """The server's log-probs, before three steps of the learner and a push, and after."""
    from stages.learn.megatron import start_rank

    rank: Any = start_rank(cases.settings(folder / "model"))
    sender = BroadcastSender(
        rank.hf_weights, rank.export_hf, torch.device("cpu"), timeout_seconds=60.0
    )
    transport = DistributedTransport(pool, Threaded(sender), CLUSTER)
    try:
        async with aiohttp.ClientSession() as http:
            old = cases.load_hf(folder / "model")
            answer = await generate(http, pool.endpoints[0], "before")
            torch.testing.assert_close(answer.log_probs, log_probs(old, answer), atol=1e-4, rtol=0)
            for _ in range(3):
                cases.step(
                    rank,
                    cases.make_batch(
                        cases.make_step(cases.make_samples(cases.LENGTHS), micro_batches=2)
                    ),
                )
            await transport.push(1)
            rank.export_hf(folder / "new")
            answer = await generate(http, pool.endpoints[0], "after")
            torch.testing.assert_close(
                answer.log_probs,
                log_probs(cases.load_hf(folder / "new"), answer),
                atol=1e-4,
                rtol=0,
            )
            assert (answer.log_probs - log_probs(old, answer)).abs().max() > 0.1, (
                "the weights should differ visibly"
            )
    finally:
        await transport.close()
        rank.close()
