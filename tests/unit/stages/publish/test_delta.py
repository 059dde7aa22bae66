"""Pushes by delta against servers that speak SGLang's control endpoints: who is given what, and
when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.schema import ClusterConfig
from pipeline.core.errors import EngineError, WeightSyncError
from pipeline.core.types import StagedDelta
from stages.publish import delta_mirror, make_transport
from stages.publish.delta import DeltaTransport
from stages.publish.delta_sender import DeltaSender
from tests.manual_time import ManualTime
from tests.unit.stages.publish.fakes import FakePool, FakeServer, no_sleep, running


class Nodes(FakePool):
    """Engines on one node; `gone`: those whose hosts do not answer."""

    def __init__(self, servers: list[FakeServer]) -> None:
        super().__init__(servers)
        self.gone: set[str] = set()

    async def on_nodes(self, endpoint: str, work: Callable[..., Any], *args: Any) -> list[Any]:
        if endpoint in self.gone:
            raise EngineError("its host is gone")
        return [await asyncio.to_thread(work, *args)]


class Sender:
    """A learner with one tensor, whose files may be damaged on their way."""

    def __init__(self) -> None:
        self.tensor = torch.randn(100, 100)
        self._delta = DeltaSender(lambda: iter([("w", self.tensor)]))
        self.damage: set[str] = set()  # endings of files
        self.in_full: list[Path] = []
        self.staged: list[StagedDelta] = []

    def learn(self) -> None:
        self.tensor[torch.rand(100, 100) < 0.01] += 1e-3

    async def export_delta(self, path: Path) -> StagedDelta:
        self.staged.append(self._delta.export_delta(path))
        self._damage(path)
        return self.staged[-1]

    async def export_all(self, path: Path, reached: str) -> int:
        size = self._delta.export_all(path, reached)
        self.in_full.append(path)
        self._damage(path)
        return size

    def _damage(self, path: Path) -> None:
        if path.suffix in self.damage:
            data = bytearray(path.read_bytes())
            data[20] ^= 1
            path.write_bytes(data)


@pytest.fixture
async def servers() -> AsyncIterator[list[FakeServer]]:
    async with running(2) as fakes:
        yield fakes


World = tuple[DeltaTransport, Nodes, Sender]


@pytest.fixture
async def world(servers: list[FakeServer], tmp_path: Path) -> AsyncIterator[World]:
    pool, sender = Nodes(servers), Sender()
    cluster = ClusterConfig(
        weight_transport="delta",
        update_weight_local_checkpoint_dir=str(tmp_path / "node"),
        push_wave_fraction=1.0,  # both engines find out at the same time
    )
    transport = DeltaTransport(
        pool, sender, cluster, tmp_path / "shared", time=ManualTime(), sleep=no_sleep
    )
    yield transport, pool, sender
    await transport.close()
    assert not list((tmp_path / "node").iterdir()) and not (tmp_path / "shared").exists()
    assert not delta_mirror._held


def held(transport: DeltaTransport) -> torch.Tensor:
    (file,) = transport._copy.glob("*.safetensors")
    return load_file(file)["w"]


async def test_the_first_push_brings_everything_and_the_next_what_changed(
    world: World, servers: list[FakeServer]
) -> None:
    transport, pool, sender = world
    first = await transport.push(1)
    assert (first.num_full, first.num_bytes) == (1, sender.staged[0].num_bytes)  # one node
    sender.learn()
    second = await transport.push(2)
    assert second.num_full == 0 and second.num_bytes < first.num_bytes / 20
    assert torch.equal(held(transport), sender.tensor)
    assert pool.versions == dict.fromkeys(pool.endpoints, 2) and not pool.gated
    for server in servers:
        loads = [body for path, body in server.bodies if path == "update_weights_from_disk"]
        assert [body["model_path"] for body in loads] == [str(transport._copy)] * 2
    assert not sender.in_full


async def test_the_copy_is_changed_before_an_engine_pauses(
    world: World, servers: list[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, _, sender = world
    paused: list[bool] = []
    bring = delta_mirror.bring

    def watched(*args: Any) -> Any:
        found = bring(*args)
        if found != "there":
            paused.append(any(server.paused for server in servers))
        return found

    monkeypatch.setattr(delta_mirror, "bring", watched)
    await transport.push(1)
    sender.learn()
    await transport.push(2)
    assert paused == [False, False]


async def test_a_damaged_push_is_one_in_full_and_is_counted(world: World) -> None:
    transport, pool, sender = world
    await transport.push(1)
    sender.damage = {".delta"}
    sender.learn()
    result = await transport.push(2)
    assert result.num_full == 1 and result.num_bytes > sender.tensor.nbytes / 2
    assert len(sender.in_full) == 1, "once, for both engines"
    assert torch.equal(held(transport), sender.tensor) and not pool.condemned
    sender.damage.clear()
    sender.learn()
    result = await transport.push(3)
    assert result.num_full == 0 and torch.equal(held(transport), sender.tensor)


async def test_when_the_full_file_is_damaged_too_another_is_written(
    world: World, servers: list[FakeServer]
) -> None:
    transport, pool, sender = world
    await transport.push(1)
    sender.damage = {".delta", ".full"}
    sender.learn()
    with pytest.raises(WeightSyncError, match="is damaged"):
        await transport.push(2)
    assert len(sender.in_full) > 2
    # nobody has any of it
    assert pool.versions == dict.fromkeys(pool.endpoints, 1) and not pool.condemned
    assert all("pause_generation" not in server.calls[6:] for server in servers)
    sender.damage.clear()
    result = await transport.push(3)
    assert result.num_full == 1 and torch.equal(held(transport), sender.tensor)


async def test_an_engine_that_restarts_loads_its_nodes_copy_once_that_is_seen_to_be_intact(
    world: World, servers: list[FakeServer]
) -> None:
    transport, pool, sender = world
    await transport.push(1)
    endpoint = servers[0].endpoint
    servers[0].restart()
    await transport.resync(endpoint)
    assert servers[0].version == 1 and not sender.in_full
    (file,) = transport._copy.glob("*.safetensors")
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # other than it was, whatever it was
    servers[0].restart()
    await transport.resync(endpoint)
    assert servers[0].version == 1 and len(sender.in_full) == 1
    assert torch.equal(held(transport), sender.tensor)
    assert pool.versions == dict.fromkeys(pool.endpoints, 1)


async def test_a_node_that_lost_its_copy_is_given_everything(world: World) -> None:
    transport, _, sender = world
    await transport.push(1)
    delta_mirror.drop(transport._copy)
    sender.learn()
    result = await transport.push(2)
    assert result.num_full == 1 and torch.equal(held(transport), sender.tensor)


async def test_an_engine_without_a_host_fails_alone(
    world: World, servers: list[FakeServer]
) -> None:
    transport, pool, _ = world
    pool.gone = {servers[0].endpoint}
    with pytest.raises(WeightSyncError, match="its host is gone"):
        await transport.push(1)
    assert (servers[0].version, servers[1].version) == (0, 1)
    pool.gone.clear()
    await transport.deliver()
    assert servers[0].version == 1


async def test_the_flag_makes_it(servers: list[FakeServer], tmp_path: Path) -> None:
    cluster = ClusterConfig(weight_transport="delta")
    transport = make_transport(
        Nodes(servers), Sender(), cluster, device="cpu", folder=tmp_path / "shared"
    )
    assert isinstance(transport, DeltaTransport)
    await transport.close()
