"""Pushes by delta to two real SGLang servers of one node: what they hold after each is what the
learner has, bit for bit, in bfloat16."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
import torch

from pipeline.core.ports import free_port
from pipeline.core.types import StagedDelta
from stages.engine.launch import Engine
from stages.engine.pool import SGLangPool
from stages.publish import delta_mirror
from stages.publish.control import EngineControl
from stages.publish.delta import DeltaTransport
from stages.publish.delta_sender import DeltaSender
from stages.publish.disk import DiskTransport
from tests.conftest import ROOT, read_metrics, run_entry
from tests.integration.engine.engine_world import CLUSTER, World, engine_spec, make_model

pytestmark = [pytest.mark.slow, pytest.mark.alone]
in_one_loop = pytest.mark.asyncio(loop_scope="module")
PROMPT = list(range(40, 60))
LR = 1e-6


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


class Learner:
    """Adam (arXiv 1412.6980) over float32 masters of the model's bfloat16 weights, and the sender
    of rank 0, whose files may be damaged on their way."""

    def __init__(self, world: World) -> None:
        self._model = world.model
        self._masters = [p.detach().float() for p in world.model.parameters()]
        self._adam = torch.optim.Adam(self._masters, lr=LR)
        self._sender = DeltaSender(lambda: iter(world.model.state_dict().items()))
        self.damages = False
        self.num_full = 0

    def step(self) -> None:
        for master in self._masters:
            master.grad = torch.randn_like(master)
        self._adam.step()
        with torch.no_grad():
            for parameter, master in zip(self._model.parameters(), self._masters, strict=True):
                parameter.copy_(master)

    async def export_delta(self, path: Path) -> StagedDelta:
        staged = self._sender.export_delta(path)
        if self.damages:
            damage(path)
        return staged

    async def export_all(self, path: Path, reached: str) -> int:
        self.num_full += 1
        return self._sender.export_all(path, reached)


@dataclasses.dataclass
class Delta:
    world: World
    learner: Learner
    transport: DeltaTransport
    version: int = 0

    async def push(self) -> tuple[int, float]:
        """(How many nodes were given everything, bytes over those of the weights.)"""
        self.version += 1
        self.learner.step()
        result = await self.transport.push(self.version)
        assert result.num_engines == 2
        expected = self.world.expected_checksums()
        for endpoint in self.world.pool.endpoints:
            assert await self.world.checksums(endpoint) == expected
            assert self.world.pool.version_of(endpoint) == self.version
        full = sum(t.nbytes for t in self.world.model.state_dict().values())
        return result.num_full, result.num_bytes / full


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def delta(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Delta]:
    folder = tmp_path_factory.mktemp("delta")
    torch.set_num_threads(1)
    model = make_model(scale=1.0).bfloat16()
    model.save_pretrained(folder / "model")
    ports: list[int] = []
    for _ in range(2):
        ports.append(free_port(ports))
    specs = [dataclasses.replace(engine_spec(folder, i), dtype="bfloat16") for i in range(2)]
    engines = [Engine(spec, port) for spec, port in zip(specs, ports, strict=True)]
    pool = SGLangPool(engines, concurrency=32, max_restarts=3, start_timeout_seconds=200.0)
    cluster = dataclasses.replace(
        CLUSTER,
        weight_transport="delta",
        check_weight_update_equal=True,
        update_weight_local_checkpoint_dir=str(folder / "node"),
    )
    await pool.start()
    try:
        async with aiohttp.ClientSession() as http:
            world = World(folder, pool, engines, model, http)
            learner = Learner(world)
            transport = DeltaTransport(pool, learner, cluster, folder / "shared")
            yield Delta(world, learner, transport)
            await transport.close()
    finally:
        await pool.close()
    assert not list((folder / "node").iterdir()) and not (folder / "shared").exists()


@in_one_loop
async def test_several_pushes(delta: Delta) -> None:
    """The first brings what was wiped out of the engines (--check-weight-update-equal)."""
    await delta.transport.wipe_loaded()
    await delta.transport.push(0)
    num_full, share = 0, 0.0
    for _ in range(4):
        num_full, share = await delta.push()
        assert num_full == 0 and 0 < share < 0.2, "a tiny model: its names weigh something too"
    assert delta.learner.num_full == 0


@in_one_loop
async def test_requests_in_flight_go_on(delta: Delta) -> None:
    endpoint = delta.world.pool.endpoints[0]
    async with delta.world.running(endpoint, PROMPT, "flight", 300) as task:
        assert (await delta.push())[0] == 0
    assert [span.version for span in (await task).spans] == [delta.version - 1, delta.version]


@in_one_loop
async def test_a_damaged_push_is_one_in_full(delta: Delta) -> None:
    delta.learner.damages = True
    num_full, share = await delta.push()
    assert num_full == 1 and share > 0.5 and delta.learner.num_full == 1
    delta.learner.damages = False
    assert (await delta.push())[0] == 0


@in_one_loop
async def test_an_engine_that_dies_comes_back_with_the_weights_of_the_last_push(
    delta: Delta,
) -> None:
    await delta.push()
    pool, engine = delta.world.pool, delta.world.engines[0]
    endpoint, before = engine.endpoint, pool.statistics().num_restarts
    process = engine._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    await pool.report_failure(endpoint, ConnectionError("it is dead"))
    assert await pool.settled(endpoint)
    assert pool.statistics().num_restarts == before + 1
    assert pool.version_of(endpoint) == delta.version
    assert await delta.world.checksums(endpoint) == delta.world.expected_checksums()
    assert (await delta.push())[0] == 0


@in_one_loop
async def test_an_engine_whose_node_lost_its_copy_is_given_everything(delta: Delta) -> None:
    delta_mirror.drop(delta.transport._copy)
    assert (await delta.push())[0] == 1
    assert (await delta.push())[0] == 0


async def test_an_engine_of_two_ranks(tmp_path: Path) -> None:
    """Each has its parts of fused and sharded weights as it would from a push of everything."""
    model = make_model(scale=1.0).bfloat16()
    model.save_pretrained(tmp_path / "model")
    spec = dataclasses.replace(engine_spec(tmp_path, 0), dtype="bfloat16", tp_size=2)
    pool = SGLangPool([Engine(spec)], concurrency=32, max_restarts=0, start_timeout_seconds=200.0)
    (endpoint,) = pool.endpoints
    await pool.start()
    try:
        async with aiohttp.ClientSession() as http:
            world = World(tmp_path, pool, [], model, http)
            learner = Learner(world)
            transport = DeltaTransport(pool, learner, CLUSTER, tmp_path / "shared")
            await transport.push(1)
            learner.step()
            assert (await transport.push(2)).num_full == 0
            await transport.close()
            control = EngineControl(http, endpoint)
            found = await control.checksums()
            assert {name.split(", ")[1] for name in found} == {"rank 0", "rank 1"}
            await control.wipe_weights()
            assert await control.checksums() != found
            disk = DiskTransport(pool, world.sender, CLUSTER, tmp_path / "disk")
            await disk.push(3)
            await disk.close()
            assert await control.checksums() == found
    finally:
        await pool.close()


def test_a_run_by_delta(tmp_path: Path, nothing_left_behind: None) -> None:
    """Learner ranks and engines in processes of their own, and nothing of the copy is left."""
    node = tmp_path / "node"
    done = run_entry(
        *("--config", str(ROOT / "configs" / "presets" / "quickstart.yaml"), "--sft-steps", "0"),
        *("--num-rollout", "3", "--rollout-batch-size", "2", "--n-samples-per-prompt", "2"),
        *("--rollout-num-gpus", "2", "--dtype", "bfloat16", "--lr", "1e-6", "--rm-type", "random"),
        *("--weight-transport", "delta", "--check-weight-update-equal", "--eval-interval", "0"),
        *("--update-weight-local-checkpoint-dir", str(node)),
        *("--runs-dir", str(tmp_path), "--name", "delta"),
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, *others = read_metrics(tmp_path / "delta", "push")
    assert len(others) >= 2
    for push in others:  # the model has 1.8 MB
        assert push["num_full"] == 0 and 0 < push["num_bytes"] < 200_000
    assert not list(node.iterdir())
