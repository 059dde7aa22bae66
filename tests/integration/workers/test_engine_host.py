"""Engines in Ray actors: they start on their node, are watched, come back, and leave nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from pipeline.core.errors import ConfigError, EngineError
from pipeline.schedule.placement import Wanted
from pipeline.workers import hosted_engine
from pipeline.workers.hosted_engine import HostedEngine
from pipeline.workers.pools import Pools
from tests.script_engine import ScriptSpec, gone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.asyncio(loop_scope="module"),
]


def make_pools(*engines: int) -> Pools:
    wanted = Wanted(actor_num_nodes=0, actor_num_gpus_per_node=1, engines=engines)
    return Pools(wanted, address=None, on_gpu=False, object_store_bytes=100 << 20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pools() -> AsyncIterator[Pools]:
    pools = make_pools(1, 1)
    yield pools
    folder = pools.cluster.folder
    await pools.close()
    assert folder is not None and not folder.exists()


@pytest_asyncio.fixture(loop_scope="module")
async def engine(pools: Pools, tmp_path: Path) -> AsyncIterator[HostedEngine]:
    spec = ScriptSpec(
        index=0,
        model_path=tmp_path,
        log_path=tmp_path / "logs" / "engine-0.log",
        device="cpu",
        dtype="float32",
        mark=tmp_path / f"slipstream-test-{os.getpid()}-{tmp_path.name}",
    )
    engine = HostedEngine(spec, pools)
    yield engine
    await engine.stop()


def marks(engine: HostedEngine) -> tuple[int, Path, Path]:
    """(pid of its server's child, its temporary folder, its shared-memory file)."""
    mark: Path = engine.spec.mark  # type: ignore[attr-defined]
    child, scratch = mark.read_text().split()
    return int(child), Path(scratch), Path(f"/dev/shm/{mark.name}.shm")


async def test_it_answers_and_leaves_nothing_behind(engine: HostedEngine) -> None:
    await engine.start(0, 60.0)
    child, scratch, shared = marks(engine)
    assert engine.alive and await engine.healthy(deep=False)
    assert engine.endpoint.startswith("http://127.0.0.1:")
    assert scratch.exists() and shared.exists() and psutil.pid_exists(child)
    assert "it is up" in engine.log_tail()
    await engine.stop()
    assert not engine.alive and not await engine.healthy(deep=False)
    assert not scratch.exists() and not shared.exists() and gone(child)


async def test_its_end_is_told_and_it_comes_back_at_the_same_address(engine: HostedEngine) -> None:
    await engine.start(0, 60.0)
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    engine.on_death = told.set_result
    (server,) = psutil.Process(marks(engine)[0]).parents()[:1]
    server.kill()
    assert "SIGKILL" in await asyncio.wait_for(told, 30)
    assert not engine.alive
    address = engine.endpoint
    await engine.start(0, 60.0)
    assert engine.alive and engine.endpoint == address and await engine.healthy(deep=False)


async def test_a_host_that_is_killed_takes_its_engine_along_and_is_replaced(
    engine: HostedEngine,
) -> None:
    await engine.start(0, 60.0)
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    engine.on_death = told.set_result
    child, scratch, shared = marks(engine)
    server = psutil.Process(child).parent()
    os.kill(engine._where[0].pid, signal.SIGKILL)
    assert "lost its host" in await asyncio.wait_for(told, 60)
    assert server is not None
    await asyncio.to_thread(psutil.wait_procs, [server], 30)
    assert not server.is_running() and not engine.alive
    psutil.Process(child).kill()  # this server's own child, of which the kernel knows nothing
    await engine.start(0, 60.0)
    assert await engine.healthy(deep=False)
    await engine.stop()
    assert not scratch.exists() and not shared.exists()


async def test_a_host_that_is_stopped_is_replaced_when_its_engine_must_be_started_again(
    engine: HostedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted_engine, "ANSWER_SECONDS", 2.0)
    await engine.start(0, 60.0)
    child, host = marks(engine)[0], psutil.Process(engine._where[0].pid)
    server = psutil.Process(child).parent()
    assert server is not None
    host.suspend()
    engine.kill()
    await engine.start(0, 60.0)
    assert await engine.healthy(deep=False)
    await asyncio.to_thread(psutil.wait_procs, [host, server], 30)
    assert not host.is_running() and not server.is_running()
    psutil.Process(child).kill()  # this server's own child, of which the kernel knows nothing


async def test_an_engine_that_does_not_start_says_why(engine: HostedEngine) -> None:
    import dataclasses

    broken = "import sys; print('CUDA out of memory', flush=True); sys.exit(3)"
    engine.spec = dataclasses.replace(engine.spec, script=broken)  # type: ignore[call-arg]
    with pytest.raises(EngineError, match=r"exit code 3.*--sglang-mem-fraction-static") as caught:
        await engine.start(0, 60.0)
    assert "CUDA out of memory" in str(caught.value)
    assert not engine.alive


async def test_what_does_not_fit_is_refused_before_anything_starts() -> None:
    """Of a machine without GPUs nothing is asked that it has not: slots are logical there."""
    pools = Pools(
        Wanted(actor_num_nodes=2, actor_num_gpus_per_node=1, engines=(1,)),
        address=None,
        on_gpu=False,
        object_store_bytes=100 << 20,
    )
    with pytest.raises(ConfigError, match="2 x 1 for the learner"):
        await pools.start()
    assert pools.cluster.folder is None
    await pools.close()
