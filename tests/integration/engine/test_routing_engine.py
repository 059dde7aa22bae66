"""Routed experts from a real SGLang server: whose they are, what they become over turns and a push,
and what replaying them is good for."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema import ClusterConfig, RolloutConfig
from pipeline.core.errors import EngineError
from pipeline.core.time import MonotonicTime
from pipeline.core.types import Sample, TrainSample, VersionSpan
from stages.engine.launch import Engine
from stages.engine.mock import MockTokenizer
from stages.engine.pool import SGLangPool
from stages.engine.spec import EngineSpec, experts_shape
from stages.generate.client import SGLangClient
from stages.generate.session import open_session
from stages.publish import make_transport
from stages.publish.sender import BroadcastSender
from tests.integration.engine.engine_world import Threaded
from tests.integration.learn import learner_cases as cases
from tests.integration.learn import routing_cases as routing

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
CLUSTER = ClusterConfig(sglang_server_concurrency=32)
PARAMS = {"temperature": 1.0, "max_new_tokens": 40, "ignore_eos": True}


def engine_of(folder: Path, logs: Path) -> Engine:
    spec = EngineSpec(
        index=0,
        model_path=folder,
        log_path=logs / "engine.log",
        device="cpu",
        dtype="float32",
        concurrency=32,
        tokens_per_request=256,
        returns_experts=True,
        user={"skip_tokenizer_init": True},
    )
    return Engine(spec)


class Numbers(MockTokenizer):
    def decode(self, token_ids: Any, skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, token_ids))


async def two_turns(client: SGLangClient, index: int, between: Any = None) -> Sample:
    """24 tokens, three of a tool's, and 13 more."""
    args = SimpleNamespace(
        engine_client=client,
        tokenizer=Numbers(),
        max_turns=4,
        context_length=None,
        time=MonotonicTime(),
    )
    sample = Sample(index=index, group_index=0, tokens=[3 + index, 7, 11, 13, 17])
    async with open_session(args, sample, PARAMS) as session:
        await session.generate(max_new_tokens=24)
        session.append_tool([5, 6, 7])
        if between is not None:
            await between()
        await session.generate(max_new_tokens=13)
    return sample


def train_sample(sample: Sample) -> TrainSample:
    assert sample.rollout_log_probs is not None and sample.loss_mask is not None
    return TrainSample(
        index=sample.index or 0,
        group_index=0,
        tokens=np.asarray(sample.tokens),
        response_length=sample.response_length,
        loss_mask=np.asarray(sample.loss_mask, np.uint8),
        rollout_log_probs=np.asarray(sample.rollout_log_probs, np.float32),
        advantages=np.ones(sample.response_length, np.float32),
        reward=0.0,
        staleness=0,
        routed_experts=sample.rollout_routed_experts,
    )


def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[tokens, layers]: the same experts, in any order."""
    return (np.sort(a, -1) == np.sort(b, -1)).all(-1)


def distance(rank: Any, samples: list[TrainSample]) -> float:
    """Mean |learner's - engine's log-prob| over the trained tokens."""
    from stages.learn.log_prob_pass import Prepared

    packed = cases.pack(rank, samples)
    (found,) = rank._passes.log_probs_now([Prepared(p) for p in packed])
    return float((found - packed[0].rollout_log_probs).abs().mean())


async def test_experts_of_a_real_engine(tmp_path: Path, nothing_left_behind: None) -> None:
    from stages.learn.megatron import start_rank

    # Many experts, and loud ones: small differences of the scores are common, and are heard.
    folder = routing.make_moe(tmp_path / "moe", num_experts=32, loudness=3.0)
    pool = SGLangPool(
        [engine_of(folder, tmp_path)], concurrency=32, max_restarts=0, start_timeout_seconds=240
    )
    client = SGLangClient(
        pool, RolloutConfig(generate_max_retries=0), experts_shape=experts_shape(folder)
    )
    newer = routing.make_moe(tmp_path / "newer", seed=1, num_experts=32, loudness=3.0)
    weights = cases.stored(newer)
    sender = BroadcastSender(
        lambda: iter(weights.items()), lambda path: None, torch.device("cpu"), timeout_seconds=30.0
    )
    transport = make_transport(pool, Threaded(sender), CLUSTER, device="cpu")
    try:
        await pool.start()
        samples = list(await asyncio.gather(*(two_turns(client, i) for i in range(8))))
        wrong = SGLangClient(
            pool, RolloutConfig(generate_max_retries=0), experts_shape=(routing.LAYERS, 3)
        )
        with pytest.raises(EngineError, match="routed experts"):
            await wrong.generate([1, 2, 3], PARAMS)
        await wrong.close()
        spanning = await two_turns(client, 0, between=lambda: transport.push(1))
    finally:
        for part in (client, transport, pool):
            await part.close()

    # They are those of transformers, row by row, over both turns.
    reference = routing.RoutedModel(folder)
    rows = [train_sample(s) for s in samples]
    assert all(
        r.routed_experts is not None and len(r.routed_experts) == r.num_tokens - 1 for r in rows
    )
    assert np.concatenate([same(r.routed_experts, reference.took(r)) for r in rows]).mean() > 0.999
    check_push(spanning, reference, routing.RoutedModel(newer))

    # A learner in bfloat16 routes some tokens elsewhere; with the engine's experts its log-probs
    # are nearer to the engine's.
    found = {}
    for name, flags in {"free": {}, "replayed": {"use_rollout_routing_replay": True}}.items():
        rank = start_rank(cases.settings(folder, dtype="bfloat16", **flags))
        found[name] = distance(rank, rows)
        if flags:
            metrics = cases.step(rank, cases.make_batch(cases.make_step(rows)))
            assert 0 < metrics["routing_mismatch"] < 0.2
        rank.close()
    assert found["replayed"] < 0.5 * found["free"], found
    exact = start_rank(cases.settings(folder, use_rollout_routing_replay=True))
    assert distance(exact, rows) < 1e-5
    exact.close()


def check_push(sample: Sample, older: routing.RoutedModel, newer: routing.RoutedModel) -> None:
    """Rows of the first turn stay those of the weights that sampled it; what was read after the
    push went through the new ones."""
    assert [s.version for s in sample.weight_versions] == [0, 1] and sample.weight_versions[
        1
    ] == VersionSpan(1, 27, 40)
    row = train_sample(sample)
    assert row.routed_experts is not None
    first = 5 + 24 - 1  # the last token of the first turn is read first by the second
    assert same(row.routed_experts, older.took(row))[:first].mean() > 0.999
    assert same(row.routed_experts, newer.took(row))[first:].mean() > 0.999
    forgotten = dataclasses.replace(row, routed_experts=None)
    assert same(row.routed_experts, newer.took(forgotten))[:first].mean() < 0.5
