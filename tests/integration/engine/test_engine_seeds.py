"""A real engine on a CPU in deterministic mode: a request's seed decides its tokens, whoever is
served beside it; and its memory calls."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pipeline.models.resolve import resolve_checkpoint
from stages.engine.launch import Engine
from stages.engine.memory import EngineMemory
from stages.engine.pool import SGLangPool
from stages.engine.spec import EngineSpec
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


async def test_seeds_and_memory(tmp_path: Path, nothing_left_behind: None) -> None:
    model = resolve_checkpoint(
        f"tiny:{ROOT / 'configs' / 'models' / 'tiny-qwen3.yaml'}", tmp_path
    ).absolute()
    spec = EngineSpec(
        index=0,
        model_path=model,
        log_path=tmp_path / "engine.log",
        device="cpu",
        dtype="float32",
        concurrency=16,
        tokens_per_request=128,
        user={"enable_deterministic_inference": True},
    )
    pool = SGLangPool([Engine(spec)], concurrency=16, max_restarts=0, start_timeout_seconds=200.0)
    await pool.start()
    try:
        async with aiohttp.ClientSession() as session:

            async def tokens(seed: int, key: str) -> list[int]:
                params: dict[str, Any] = {
                    "temperature": 1.0,
                    "max_new_tokens": 24,
                    "ignore_eos": True,
                    "sampling_seed": seed,
                }
                body = {
                    "input_ids": list(range(40, 60)),
                    "sampling_params": params,
                    "return_logprob": True,
                    "extra_key": key,
                }
                async with (
                    pool.lease() as endpoint,
                    session.post(f"{endpoint}/generate", json=body) as response,
                ):
                    return [
                        token
                        for _, token, _ in (await response.json())["meta_info"][
                            "output_token_logprobs"
                        ]
                    ]

            together = await asyncio.gather(*(tokens(seed, "a") for seed in range(8)))
            backwards = await asyncio.gather(*(tokens(seed, "b") for seed in reversed(range(8))))
            assert together == backwards[::-1]
            assert len({tuple(t) for t in together}) == 8
            memory = EngineMemory(pool)
            await memory.release()
            await memory.resume()
            # alone, with weights and cache that were away
            assert await tokens(3, "c") == together[3]
            assert pool.statistics().num_healthy == 1
    finally:
        await pool.close()
