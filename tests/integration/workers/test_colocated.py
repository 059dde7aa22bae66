"""Learner and engine in the same bundle of a cluster that has no other room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.schedule.placement import Wanted
from pipeline.workers import pools as pools_module
from pipeline.workers.hosted_engine import HostedEngine
from pipeline.workers.learner_group import LearnerGroup
from pipeline.workers.pools import Pools
from tests.integration.learn import learner_cases as cases
from tests.script_engine import ScriptSpec

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.filterwarnings("ignore")]


async def test_an_engine_is_hosted_where_the_learners_rank_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools_module, "SPARE_SLOTS", 0)
    model = cases.make_model("qwen3", tmp_path / "qwen3", tied=True)
    pools = Pools(
        Wanted(actor_num_nodes=1, actor_num_gpus_per_node=1, engines=(1,), colocate=True),
        address=None,
        on_gpu=False,
        object_store_bytes=100 << 20,
    )
    learner = LearnerGroup(cases.settings(model), pools)
    engine = HostedEngine(
        ScriptSpec(
            index=0,
            model_path=tmp_path,
            log_path=tmp_path / "engine-0.log",
            device="cpu",
            dtype="float32",
            mark=tmp_path / f"slipstream-test-{os.getpid()}-{tmp_path.name}",
        ),
        pools,
    )
    try:
        await learner.start()
        await engine.start(0, 60.0)
        assert await engine.healthy(deep=False)
        (place,) = pools.plan.engines[0]
        assert place.rank == 0 and [node.free for node in pools.cluster.nodes()] == [0]
        step = await learner.step(cases.make_batch(cases.make_step(cases.halves()[0])))
        assert step.metrics["num_tokens"] > 0
    finally:
        await engine.stop()
        await learner.close()
        await pools.close()
