"""Pushes against servers that speak SGLang's control endpoints and nothing else; pool and sender
are fakes at their seams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from configs.schema import ClusterConfig
from pipeline.core.errors import WeightSyncError
from stages.publish import make_transport
from stages.publish.disk import DiskTransport
from stages.publish.distributed import DistributedTransport
from tests.manual_time import ManualTime
from tests.unit.stages.publish.fakes import FakePool, FakeSender, FakeServer, no_sleep, running


@pytest.fixture
async def servers() -> AsyncIterator[list[FakeServer]]:
    async with running(2) as fakes:
        yield fakes


@pytest.fixture
async def distributed(
    servers: list[FakeServer],
) -> AsyncIterator[tuple[DistributedTransport, FakePool, FakeSender]]:
    pool, sender = FakePool(servers), FakeSender()
    transport = DistributedTransport(
        pool, sender, ClusterConfig(), time=ManualTime(), sleep=no_sleep
    )
    yield transport, pool, sender
    await transport.close()


Fixture = tuple[DistributedTransport, FakePool, FakeSender]


async def test_a_push_rolls_over_the_engines_and_is_confirmed_by_each(
    distributed: Fixture, servers: list[FakeServer]
) -> None:
    transport, pool, sender = distributed
    result = await transport.push(1)
    assert (result.policy_version, result.num_engines, result.num_bytes) == (
        1,
        2,
        6 * 4 + 4 * 2 + 4,
    )
    assert pool.versions == dict.fromkeys(pool.endpoints, 1) and not pool.gated
    for server in servers:
        assert server.calls == [
            "init_weights_update_group",
            "pause_generation",
            "begin_weight_update",
            "update_weights_from_distributed",
            "update_weights_from_distributed",
            "end_weight_update",
            "model_info",
            "continue_generation",
        ]
        assert not server.paused
    updates = [
        body for path, body in servers[0].bodies if path == "update_weights_from_distributed"
    ]
    # the version comes with the last of the weights
    assert [body.get("weight_version") for body in updates] == [None, "1"]
    assert all(
        body["load_format"] == "flattened_bucket" and body["flush_cache"] is False
        for body in updates
    )
    assert updates[0]["shapes"] == [[2, 3], [4]] and updates[0]["dtypes"] == ["float32", "bfloat16"]
    assert sender.sent == [(name, bucket) for name in sender.joined for bucket in (0, 1)]


async def test_groups_are_formed_once(distributed: Fixture, servers: list[FakeServer]) -> None:
    transport, _, sender = distributed
    await transport.push(1)
    await transport.push(2)
    assert len(sender.joined) == 2 and len(sender.prepared) == 2
    assert servers[0].calls.count("init_weights_update_group") == 1
    await transport.close()
    assert sorted(sender.left) == sorted(sender.joined)
    # the engines' sides too: those that somebody else runs go on
    assert servers[0].calls[-1] == "destroy_weights_update_group"


async def test_a_refusal_before_weights_changed_leaves_the_old_version_and_is_retried(
    distributed: Fixture, servers: list[FakeServer]
) -> None:
    transport, pool, _ = distributed
    servers[0].refuse["begin_weight_update"] = 2
    await transport.push(1)
    assert pool.versions == dict.fromkeys(pool.endpoints, 1)
    assert pool.reports == [servers[0].endpoint] * 2 and not pool.condemned
    assert servers[0].calls.count("continue_generation") == 3


async def test_a_push_that_fails_for_good_names_the_engine_and_its_version(
    distributed: Fixture, servers: list[FakeServer]
) -> None:
    transport, pool, _ = distributed
    servers[0].refuse["begin_weight_update"] = 100
    with pytest.raises(WeightSyncError) as caught:
        await transport.push(1)
    assert f"{servers[0].endpoint} stays at version 0 after 3 attempts" in str(caught.value)
    assert "begin_weight_update is refused" in str(caught.value)
    # the other got it all the same
    assert (pool.versions[servers[0].endpoint], pool.versions[servers[1].endpoint]) == (0, 1)
    assert not servers[0].paused and not pool.gated


@pytest.mark.parametrize(
    "path", ["update_weights_from_distributed", "end_weight_update", "model_info"]
)
async def test_an_engine_of_no_version_is_ended_and_resynced(
    path: str, distributed: Fixture, servers: list[FakeServer]
) -> None:
    transport, pool, sender = distributed
    servers[0].refuse[path] = 1
    result = await transport.push(1)
    assert pool.condemned == [servers[0].endpoint] and result.num_engines == 1
    assert await pool.settled(servers[0].endpoint)  # nobody waited for it; it comes back
    assert servers[0].version == 1 and pool.versions == dict.fromkeys(pool.endpoints, 1)
    # a new process needs a new group
    assert len(sender.joined) == 3 and sender.left == sender.joined[:1]
    assert len(sender.prepared) == 1  # with the very weights that the others got


async def test_an_engine_of_no_version_never_goes_on(
    distributed: Fixture, servers: list[FakeServer]
) -> None:
    transport, pool, _ = distributed
    servers[0].refuse["end_weight_update"] = 1
    await transport.push(1)
    assert await pool.settled(servers[0].endpoint)
    failed = servers[0].calls.index("end_weight_update")
    # of its next life, not continue_generation
    assert servers[0].calls[failed + 1] == "init_weights_update_group"


async def test_a_learner_that_cannot_send_fails_the_push_by_its_own_error(
    distributed: Fixture, servers: list[FakeServer]
) -> None:
    transport, pool, sender = distributed
    sender.failures = [WeightSyncError("the wire is cut")] * 100
    with pytest.raises(WeightSyncError, match="the wire is cut"):
        # The fake restarts without limit; the pool's own limit is its own test.
        await asyncio.wait_for(transport.push(1), 30)
    assert not pool.gated


async def test_an_engine_that_came_to_a_group_in_vain_leaves_it_and_is_asked_again(
    distributed: Fixture, servers: list[FakeServer]
) -> None:
    transport, pool, sender = distributed
    join, failures = sender.join, [WeightSyncError("port taken")]

    async def fails_once(*args: Any) -> None:
        await join(*args)
        if failures:
            raise failures.pop()

    sender.join = fails_once  # type: ignore[method-assign]
    await transport.push(1)
    assert not pool.condemned and sender.left == sender.joined[:1]
    assert len(servers[0].groups) == 1 and servers[0].version == 1


async def test_an_engine_that_refuses_a_group_is_asked_again(
    distributed: Fixture, servers: list[FakeServer]
) -> None:
    transport, pool, sender = distributed
    servers[0].refuse["init_weights_update_group"] = 1
    await transport.push(1)
    assert not pool.condemned and len(set(sender.joined)) == 3 and sender.left == sender.joined[:1]


async def test_a_lost_engine_is_left_out(distributed: Fixture, servers: list[FakeServer]) -> None:
    transport, pool, _ = distributed
    pool.lost.add(servers[0].endpoint)
    assert (await transport.push(1)).num_engines == 1
    pool.lost.add(servers[1].endpoint)
    with pytest.raises(WeightSyncError, match="no engine is left"):
        await transport.push(2)


async def test_resync_before_the_first_push_does_nothing(
    distributed: Fixture, servers: list[FakeServer]
) -> None:
    transport, _, _ = distributed
    await transport.resync(servers[0].endpoint)
    assert servers[0].calls == []


async def test_a_cancelled_push_leaves_no_engine_paused_or_gated(
    distributed: Fixture, servers: list[FakeServer]
) -> None:
    """Cancelled while paused and untouched: it goes on.

    Cancelled half-way through the weights: it is ended.
    """
    transport, pool, _ = distributed
    for path, ended in (
        ("pause_generation", []),
        ("update_weights_from_distributed", [servers[0].endpoint]),
    ):
        servers[0].entered[path], servers[0].blocked[path] = asyncio.Event(), asyncio.Event()
        push = asyncio.create_task(transport.push(1))
        await servers[0].entered[path].wait()
        push.cancel()
        with pytest.raises(asyncio.CancelledError):
            await push
        servers[0].blocked.pop(path).set()
        assert not pool.gated and pool.condemned == ended
    # after the first; the second was ended
    assert servers[0].calls.count("continue_generation") == 1


async def test_an_engine_leaves_the_pool_between_two_waves_and_out_of_its_group(
    distributed: Fixture, servers: list[FakeServer]
) -> None:
    transport, pool, _ = distributed
    assert pool.on_leave is not None
    one, two = servers
    one.entered["init_weights_update_group"] = asyncio.Event()
    one.blocked["init_weights_update_group"] = asyncio.Event()
    left: list[list[str]] = []

    def leave() -> None:
        left.append([str(server.version) for server in servers])
        pool.servers.pop(one.endpoint)
        pool.lost.add(one.endpoint)

    await transport.stage(1)
    push = asyncio.create_task(transport.deliver())
    await one.entered["init_weights_update_group"].wait()
    leaving = asyncio.create_task(pool.on_leave(one.endpoint, leave))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not left  # the group that is being formed waits for it
    one.blocked["init_weights_update_group"].set()
    await asyncio.gather(push, leaving)
    assert len(left) == 1 and left[0][0] == "1"  # it had its turn before
    assert not one.groups  # and is in no group, should it live on
    assert (await transport.push(2)).num_engines == 1 and two.version == 2
    assert not pool.gated


async def test_retract_empties_the_cache_before_it_touches_the_weights(
    servers: list[FakeServer],
) -> None:
    pool = FakePool(servers)
    transport = DistributedTransport(
        pool, FakeSender(), ClusterConfig(weight_update_mode="retract"), sleep=no_sleep
    )
    servers[0].refuse["flush_cache"] = 1
    await transport.push(1)
    assert servers[0].calls[1:7] == [
        "pause_generation",
        "flush_cache",
        "continue_generation",
        "pause_generation",
        "flush_cache",
        "begin_weight_update",
    ]
    assert servers[0].bodies[1][1] == {"mode": "retract"} and not pool.condemned
    await transport.close()


async def test_stall_is_the_longest_pause_of_one_engine(servers: list[FakeServer]) -> None:
    time, sender, pool = ManualTime(), FakeSender(), FakePool(servers)
    seconds = iter([1.0, 1.0, 2.0, 2.0])
    transport = DistributedTransport(pool, sender, ClusterConfig(), time=time, sleep=no_sleep)

    async def broadcast(sender: int, group_name: str, bucket: int) -> None:
        time.advance(next(seconds))

    sender.broadcast = broadcast  # type: ignore[method-assign]
    result = await transport.push(1)
    assert (result.seconds, result.stall_seconds) == (6.0, 4.0)
    await transport.close()


async def test_disk_keeps_one_folder_and_removes_it_at_the_end(
    servers: list[FakeServer], tmp_path: Path
) -> None:
    pool = FakePool(servers)
    folder = tmp_path / "weights"
    transport = make_transport(
        pool, FakeSender(), ClusterConfig(weight_transport="disk"), device="cpu", folder=folder
    )
    assert isinstance(transport, DiskTransport)
    for version in (1, 2):
        result = await transport.push(version)
        assert result.num_bytes == 100
    assert [path.name for path in sorted(folder.iterdir())] == ["version-2"]
    body = servers[0].bodies[-3][1]
    assert body["model_path"] == str(folder / "version-2") and body["flush_cache"] is False
    assert pool.versions == dict.fromkeys(pool.endpoints, 2)
    await transport.close()
    assert not folder.exists()


async def test_weights_are_staged_in_the_room_that_engines_make(
    distributed: Fixture, servers: list[FakeServer]
) -> None:
    """Where they share the learner's devices; afterwards they have all of theirs again."""
    transport, _, sender = distributed
    seen = []

    @contextlib.asynccontextmanager
    async def room() -> AsyncIterator[None]:
        seen.append(("begin", len(sender.prepared)))
        yield
        seen.append(("end", len(sender.prepared)))

    transport.room = room
    await transport.stage(1)
    assert [what for what, _ in seen] == ["begin", "end"] and seen[0][1] < seen[1][1]
    assert not any(server.calls for server in servers)
    await transport.deliver()
    assert len(seen) == 2 and all(server.calls for server in servers)
