"""A learner of two pipeline stages and a real SGLang server: each stage sends its own weights, and
what arrives is bit for bit what was sent, with and without a copy, under way and after a death."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from configs.schema import ClusterConfig
from pipeline.workers.learner_group import LearnerGroup
from stages.engine.launch import Engine
from stages.engine.pool import SGLangPool
from stages.engine.spec import EngineSpec
from stages.publish.control import EngineControl
from stages.publish.disk import DiskTransport
from stages.publish.distributed import DistributedTransport
from tests.integration.learn import learner_cases as cases

pytestmark = [
    *(pytest.mark.slow, pytest.mark.alone, pytest.mark.filterwarnings("ignore")),
    pytest.mark.asyncio(loop_scope="module"),
]
CLUSTER = ClusterConfig(
    actor_num_gpus_per_node=2, update_weight_buffer_size=64 << 10, check_weight_update_equal=True
)
NOT_COPIED = dataclasses.replace(CLUSTER, push_staging_bytes=100_000)


@dataclass(frozen=True, slots=True)
class World:
    pool: SGLangPool
    engine: Engine
    learner: LearnerGroup
    http: aiohttp.ClientSession

    async def checksums(self) -> dict[str, str]:
        return await EngineControl(self.http, self.engine.endpoint).checksums()

    async def learn(self) -> None:
        steps = [cases.make_step(part, micro_batches=2) for part in cases.halves()]
        await self.learner.step(cases.make_batch(*steps))

    async def push(self, transport: DistributedTransport | DiskTransport) -> int:
        self.pool.on_restart = transport.resync
        version = self.pool.version_of(self.engine.endpoint) + 1
        assert (await transport.push(version)).num_engines == 1
        assert self.pool.version_of(self.engine.endpoint) == version
        return version

    async def by_disk(self, folder: Path) -> dict[str, str]:
        """The checksums of the learner's weights when they came by a way of their own."""
        disk = DiskTransport(self.pool, self.learner, ClusterConfig(), folder)
        await self.push(disk)
        await disk.close()
        return await self.checksums()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("senders")
    model = cases.make_model("qwen3", folder / "model", tied=True, num_layers=4)
    spec = EngineSpec(
        index=0,
        model_path=model,
        log_path=folder / "engine.log",
        device="cpu",
        dtype="float32",
        tokens_per_request=200,
        user={"skip_tokenizer_init": True},
    )
    engine = Engine(spec)
    pool = SGLangPool([engine], concurrency=8, max_restarts=2, start_timeout_seconds=240.0)
    learner = LearnerGroup(
        cases.settings(model, ranks=2, megatron={"pipeline_model_parallel_size": 2})
    )
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(pool.start())
            both.create_task(learner.start())
        async with aiohttp.ClientSession() as http:
            yield World(pool, engine, learner, http)
    finally:
        await pool.close()
        await learner.close()


async def test_each_stage_sends_its_own_weights_and_they_arrive_bit_for_bit(
    world: World, tmp_path: Path
) -> None:
    transport = DistributedTransport(world.pool, world.learner, CLUSTER)
    await transport.wipe_loaded()
    await world.push(transport)  # --check-weight-update-equal: the checkpoint's bits again
    sent = {
        sender: {name for bucket in buckets for name, _, _ in bucket}
        for sender, buckets in transport._weights.buckets.items()
    }
    assert all(len(buckets) > 2 for buckets in transport._weights.buckets.values())
    assert "model.embed_tokens.weight" in sent[0] and "model.norm.weight" in sent[1]
    assert {0, 1} == sent.keys() and not sent[0] & sent[1]
    assert {n.split(".")[2] for n in sent[0] if ".layers." in n} == {"0", "1"}
    assert {n.split(".")[2] for n in sent[1] if ".layers." in n} == {"2", "3"}
    before = await world.checksums()
    await world.learn()
    assert await world.checksums() == before
    await world.push(transport)
    after = await world.checksums()
    assert all(after[name] != before[name] for name in after)
    assert after == await world.by_disk(tmp_path / "weights")
    await transport.close()


async def test_what_is_not_copied_arrives_too(world: World, tmp_path: Path) -> None:
    transport = DistributedTransport(world.pool, world.learner, NOT_COPIED)
    await world.learn()
    assert await transport.stage(world.pool.version_of(world.engine.endpoint) + 1) is False
    await transport.deliver()
    found = await world.checksums()
    assert found == await world.by_disk(tmp_path / "weights")
    await transport.close()


async def test_an_engine_that_dies_while_the_second_stage_sends_takes_no_rank_with_it(
    world: World, tmp_path: Path
) -> None:
    """With and without a copy: the learner trains on, and the engine comes back with all."""
    broadcast = world.learner.broadcast
    for cluster in (CLUSTER, NOT_COPIED):
        transport = DistributedTransport(world.pool, world.learner, cluster)
        await world.learn()
        killed = False

        async def kills_once(sender: int, group: str, bucket: int) -> None:
            nonlocal killed
            if (sender, bucket) == (1, 1) and not killed:
                killed = True
                process = world.engine._process
                assert process is not None
                os.killpg(process.pid, signal.SIGKILL)
            await broadcast(sender, group, bucket)

        world.learner.broadcast = kills_once  # type: ignore[method-assign]
        try:
            await world.push(transport)
        finally:
            del world.learner.broadcast  # type: ignore[misc]
        assert killed
        found = await world.checksums()
        assert found == await world.by_disk(tmp_path / f"weights-{cluster.push_staging_bytes}")
        await transport.close()
    await world.learn()
