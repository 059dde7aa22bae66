"""Real SGLang servers: what they compute, and that new weights reach them exactly, under way and
after a death."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest
import pytest_asyncio
import torch

from configs.schema import RolloutConfig
from pipeline.core.errors import WeightSyncError
from pipeline.core.ports import free_port
from stages.engine.launch import Engine
from stages.engine.pool import SGLangPool
from stages.generate.client import SGLangClient
from stages.publish.control import EngineControl
from stages.publish.disk import DiskTransport
from stages.publish.distributed import DistributedTransport
from tests.integration.engine.engine_world import CLUSTER, World, engine_spec, log_probs, make_model

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.asyncio(loop_scope="module")]
TOLERANCE = 1e-4
PROMPT = list(range(40, 60))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("engines")
    torch.set_num_threads(1)
    model = make_model()
    model.save_pretrained(folder / "model")
    ports: list[int] = []
    for _ in range(2):
        ports.append(free_port(ports))
    engines = [Engine(engine_spec(folder, i), port) for i, port in enumerate(ports)]
    pool = SGLangPool(engines, concurrency=32, max_restarts=3, start_timeout_seconds=200.0)
    await pool.start()
    try:
        async with aiohttp.ClientSession() as http:
            yield World(folder, pool, engines, model, http)
    finally:
        shared = [file for engine in engines if engine._scratch for file in engine._scratch._shared]
        num_processes = sum(len(engine._members()) for engine in engines)
        await pool.close()
    assert num_processes == 6, "server, scheduler and detokenizer, copies of one interpreter"
    assert [pid for engine in engines for pid in engine._members()] == []
    assert len(shared) >= 2 and not any(file.exists() for file in shared)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def transport(world: World) -> AsyncIterator[DistributedTransport]:
    transport = DistributedTransport(world.pool, world.sender, CLUSTER)
    yield transport
    await transport.close()


async def push(world: World, transport: DistributedTransport) -> int:
    """New weights on every engine; returns their version."""
    version = max(map(world.pool.version_of, world.pool.endpoints)) + 1
    world.learn()
    assert (await transport.push(version)).policy_version == version
    return version


async def test_log_probs_are_those_of_the_checkpoint(world: World) -> None:
    for endpoint in world.pool.endpoints:
        answer = await world.generate(endpoint, PROMPT, key="first")
        assert [tuple(span) for span in answer.spans] == [(0, 0, 8)]
        torch.testing.assert_close(
            answer.log_probs, log_probs(world.model, answer), atol=TOLERANCE, rtol=0
        )


async def test_a_paused_engine_leaves_the_cores_to_others_and_wakes(world: World) -> None:
    """A scheduler that looks for its continuation without rest takes all of a core."""
    endpoint = world.pool.endpoints[0]
    (scheduler,) = (
        p for p in map(psutil.Process, world.engines[0]._members()) if "scheduler" in p.name()
    )

    def cpu_seconds() -> float:
        return sum(scheduler.cpu_times()[:2])

    await world.post(endpoint, "pause_generation", {"mode": "in_place"})
    began, since = cpu_seconds(), time.monotonic()
    await asyncio.sleep(1.0)  # what is measured; nothing is waited for
    share = (cpu_seconds() - began) / (time.monotonic() - since)
    asked = asyncio.ensure_future(world.generate(endpoint, PROMPT, key="paused"))
    await world.post(endpoint, "continue_generation", {})
    assert (await asked).tokens and share < 0.5


async def test_after_a_push_every_engine_holds_the_learners_weights(
    world: World, transport: DistributedTransport
) -> None:
    before = await world.checksums(world.pool.endpoints[0])
    version = await push(world, transport)
    expected = world.expected_checksums()
    for endpoint in world.pool.endpoints:
        found = await world.checksums(endpoint)
        assert found == expected
        assert all(found[name] != before[name] for name in found if "norm" not in name)
        assert world.pool.version_of(endpoint) == version
    assert len(transport._weights.buckets[0]) > 2, "the buffer size should give several buckets"


async def test_requests_in_flight_go_on_over_a_push_and_every_token_knows_its_weights(
    world: World, transport: DistributedTransport
) -> None:
    endpoint = world.pool.endpoints[0]
    old, version = world.copy(), world.pool.version_of(endpoint)
    async with contextlib.AsyncExitStack() as stack:
        prompts = [[i, *PROMPT[1:]] for i in range(4)]
        tasks = [
            await stack.enter_async_context(world.running(endpoint, p, f"flight-{version}", 500))
            for p in prompts
        ]
        await push(world, transport)
    answers = [await task for task in tasks]
    for answer in answers:
        (v0, start, boundary), (v1, again, end) = answer.spans
        assert (v0, v1, start, end) == (version, version + 1, 0, 500) and again == boundary > 0
        torch.testing.assert_close(
            answer.log_probs[:boundary], log_probs(old, answer)[:boundary], atol=TOLERANCE, rtol=0
        )
        kept_kv = log_probs(world.model, answer, start=boundary, before=old)
        torch.testing.assert_close(answer.log_probs[boundary:], kept_kv, atol=TOLERANCE, rtol=0)
        assert (log_probs(old, answer, start=boundary) - kept_kv).abs().max() > 0.1, (
            "the weights should differ visibly"
        )


async def test_retract_computes_the_kv_again(world: World) -> None:
    retract = DistributedTransport(
        world.pool, world.sender, dataclasses.replace(CLUSTER, weight_update_mode="retract")
    )
    endpoint = world.pool.endpoints[1]
    old, version = world.copy(), world.pool.version_of(endpoint)
    async with world.running(endpoint, PROMPT, f"retract-{version}", 400) as task:
        await push(world, retract)
    answer = await task
    await retract.close()
    (_, _, boundary), (v1, _, _) = answer.spans
    assert v1 == version + 1 and 0 < boundary < 400
    torch.testing.assert_close(
        answer.log_probs[:boundary], log_probs(old, answer)[:boundary], atol=TOLERANCE, rtol=0
    )
    torch.testing.assert_close(
        answer.log_probs[boundary:],
        log_probs(world.model, answer, start=boundary),
        atol=TOLERANCE,
        rtol=0,
    )


async def test_drain_lets_requests_end_with_the_weights_that_they_began_with(world: World) -> None:
    drain = DistributedTransport(
        world.pool, world.sender, dataclasses.replace(CLUSTER, weight_update_mode="drain")
    )
    version = await push(world, drain)
    params = {"max_new_tokens": 200, "temperature": 1.0, "ignore_eos": True}
    async with SGLangClient(world.pool, RolloutConfig()) as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.generate([i, *PROMPT], params)) for i in range(4)]
        while sum(world.pool.statistics().num_in_flight) < len(tasks):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await push(world, drain)
    for task in tasks:
        # those that had to wait behind the gate have the new version, from the first token on
        ((found, start, end),) = [tuple(span) for span in task.result().spans]
        assert found in (version, version + 1) and (start, end) == (0, 200)
    assert {task.result().spans[0].version for task in tasks} >= {version}
    await drain.close()
    for endpoint in world.pool.endpoints:
        assert await world.checksums(endpoint) == world.expected_checksums()


async def test_a_new_request_never_hits_the_kv_of_older_weights(
    world: World, transport: DistributedTransport
) -> None:
    """Versions are kept apart by the request's extra_key.

    Under the old key, the old KV would be used: that is why.
    """
    endpoint, prompt = world.pool.endpoints[0], list(range(100, 200))
    version = world.pool.version_of(endpoint)
    await world.generate(endpoint, prompt, key=str(version))
    assert (await world.generate(endpoint, prompt, key=str(version))).cached_tokens > 90
    await push(world, transport)
    apart = await world.generate(endpoint, prompt, key=str(version + 1))
    assert apart.cached_tokens == 0
    torch.testing.assert_close(
        apart.log_probs, log_probs(world.model, apart), atol=TOLERANCE, rtol=0
    )
    mixed = await world.generate(endpoint, prompt, key=str(version))
    assert mixed.cached_tokens > 90 and mixed.spans[0].version == version + 1
    assert (mixed.log_probs - log_probs(world.model, mixed)).abs().max() > 100 * TOLERANCE


async def test_a_push_by_disk_gives_the_same_weights(world: World, tmp_path: Path) -> None:
    disk = DiskTransport(world.pool, world.sender, CLUSTER, tmp_path / "weights")
    endpoint = world.pool.endpoints[0]
    version = world.pool.version_of(endpoint)
    async with world.running(endpoint, PROMPT, f"disk-{version}", 400) as task:
        world.learn()
        await disk.push(version + 1)
    answer = await task
    assert [span.version for span in answer.spans] == [version, version + 1]
    for each in world.pool.endpoints:
        assert await world.checksums(each) == world.expected_checksums()
    await disk.close()
    assert not (tmp_path / "weights").exists()


async def test_a_bad_folder_leaves_the_old_version(world: World, tmp_path: Path) -> None:
    endpoint = world.pool.endpoints[0]
    before, version = await world.checksums(endpoint), world.pool.version_of(endpoint)
    control = EngineControl(world.http, endpoint)
    with pytest.raises(
        WeightSyncError, match=r"update_weights_from_disk answered 400.*weights iterator"
    ):
        await control.load(tmp_path, version + 1)
    assert await control.version() == version and await world.checksums(endpoint) == before
    empty = DiskTransport(world.pool, world.sender, CLUSTER, tmp_path / "weights")
    world.sender.export_hf = _export_nothing  # type: ignore[method-assign]
    try:
        with pytest.raises(
            WeightSyncError, match=f"{endpoint} stays at version {version} after 3 attempts"
        ):
            await empty.push(version + 1)
    finally:
        del world.sender.export_hf
        await empty.close()
    assert await control.version() == version
    # it goes on
    assert (await world.generate(endpoint, PROMPT, key="after")).spans[0].version == version


async def _export_nothing(path: Path) -> None:
    return None


async def test_an_engine_killed_under_load_loses_no_request_and_comes_back_with_the_current_weights(
    world: World, transport: DistributedTransport
) -> None:
    world.pool.on_restart = transport.resync  # other transports of this module have set themselves
    version = await push(world, transport)
    prompts = [[i, *PROMPT] for i in range(16)]
    rollout = RolloutConfig(generate_max_retries=20)
    params = {"max_new_tokens": 200, "temperature": 1.0, "ignore_eos": True}
    async with SGLangClient(world.pool, rollout) as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.generate(prompt, params)) for prompt in prompts]
        # the engine generates
        async with world.running(world.pool.endpoints[0], PROMPT, "canary", 200) as canary:
            process = world.engines[0]._process
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
        # this one had no client to look after it
        assert isinstance(canary.exception(), aiohttp.ClientError)
    assert all(len(task.result().token_ids) == 200 for task in tasks)
    assert client.statistics.transport_failures > 0
    assert await world.pool.settled(world.pool.endpoints[0])
    assert world.pool.statistics().num_restarts == 1
    assert world.pool.version_of(world.pool.endpoints[0]) == version
    assert await world.checksums(world.pool.endpoints[0]) == world.expected_checksums()
    assert (await world.generate(world.pool.endpoints[0], PROMPT, key="again")).spans[
        0
    ].version == version
    await push(world, transport)  # and the next push finds it a member like any other
    assert await world.checksums(world.pool.endpoints[0]) == world.expected_checksums()


AT_ONCE = dataclasses.replace(CLUSTER, push_wave_fraction=1.0)


async def test_one_broadcast_reaches_a_wave_of_engines(world: World) -> None:
    wave = DistributedTransport(world.pool, world.sender, AT_ONCE)
    async with world.running(world.pool.endpoints[1], PROMPT, "wave", 300) as task:
        version = await push(world, wave)
    assert [span.version for span in (await task).spans] == [version - 1, version]
    (group,) = wave._groups._names
    assert group == world.pool.endpoints
    version = await push(world, wave)
    assert list(wave._groups._names) == [group], "the group is kept"
    for endpoint in world.pool.endpoints:
        assert await world.checksums(endpoint) == world.expected_checksums()
        assert (await world.generate(endpoint, PROMPT, key=f"w{version}")).spans[0].version == (
            version
        )
    await wave.close()


async def test_an_engine_that_dies_in_the_middle_of_a_wave_takes_nobody_with_it(
    world: World,
) -> None:
    wave = DistributedTransport(world.pool, world.sender, AT_ONCE)
    await push(world, wave)
    victim, survivor = world.pool.endpoints
    broadcast, restarts = world.sender.broadcast, world.pool.statistics().num_restarts
    sent: list[int] = []

    async def kills_once(rank: int, group: str, bucket: int) -> None:
        sent.append(bucket)
        if sent == [0, 1]:
            process = world.engines[0]._process
            assert process is not None
            os.killpg(process.pid, signal.SIGKILL)
        await broadcast(rank, group, bucket)

    world.sender.broadcast = kills_once  # type: ignore[method-assign]
    try:
        async with world.running(survivor, PROMPT, "survivor", 300) as task:
            version = await push(world, wave)
        assert await world.pool.settled(victim)  # the push has not waited for it
    finally:
        del world.sender.broadcast
    assert [span.version for span in (await task).spans] == [version - 1, version]
    assert sent.count(0) == 3, "the wave, the survivor, and the one that came back"
    assert world.pool.statistics().num_restarts == restarts + 1
    for endpoint in (victim, survivor):
        assert await world.checksums(endpoint) == world.expected_checksums()
        assert world.pool.version_of(endpoint) == version
    await push(world, wave)  # together again
    assert list(wave._groups._names) == [world.pool.endpoints]
    assert await world.checksums(victim) == world.expected_checksums()
    await wave.close()
