"""Pushes by several ranks of the learner: a group each, turns in one order, and weights that are
not copied."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from configs.schema import ClusterConfig
from pipeline.core.errors import StaleWeightsError, WeightSyncError
from stages.publish.distributed import DistributedTransport
from tests.manual_time import ManualTime
from tests.unit.stages.publish.fakes import (
    TWO_SENDERS,
    FakePool,
    FakeSender,
    FakeServer,
    no_sleep,
    running,
)

ALL = ClusterConfig(push_wave_fraction=1.0, rollout_num_gpus_per_engine=2)
INIT, UPDATE = "init_weights_update_group", "update_weights_from_distributed"


@pytest.fixture
async def servers() -> AsyncIterator[list[FakeServer]]:
    async with running(2) as fakes:
        yield fakes


World = tuple[DistributedTransport, FakePool, FakeSender]


def world(servers: list[FakeServer], cluster: ClusterConfig = ALL) -> World:
    pool, sender = FakePool(servers), FakeSender(TWO_SENDERS)
    transport = DistributedTransport(pool, sender, cluster, time=ManualTime(), sleep=no_sleep)
    return transport, pool, sender


async def test_each_has_a_group_and_all_groups_stand_before_an_engine_pauses(
    servers: list[FakeServer],
) -> None:
    transport, _, sender = world(servers)
    result = await transport.push(1)
    assert result.num_bytes == 6 * 4 + 4 * 2 + 4 + 2 * 4
    for server in servers:
        assert server.calls == [
            *(INIT, INIT, "pause_generation", "begin_weight_update"),
            *(UPDATE, UPDATE, UPDATE, "end_weight_update", "model_info", "continue_generation"),
        ]
        updates = [body for path, body in server.bodies if path == UPDATE]
        assert [body["names"] for body in updates] == [["a", "b"], ["c"], ["d"]]
        assert [body.get("weight_version") for body in updates] == [None, None, "1"]
        assert len(server.groups) == 2
    assert sender.worlds == [5, 5]
    assert sender.events == [
        *(("join", 0), ("join", 3)),
        *(("broadcast", 0), ("broadcast", 0), ("broadcast", 3)),
    ]
    assert [group for group, _ in sender.sent] == [*sender.joined[:1] * 2, sender.joined[1]]
    await transport.push(2)
    assert len(sender.joined) == 2, "groups are kept"
    await transport.close()
    assert sender.left == sender.joined and not any(server.groups for server in servers)


async def test_a_group_that_does_not_form_takes_those_before_it_along(
    servers: list[FakeServer],
) -> None:
    """Of the second sender: it is said which, and who was missing, and nobody stays in the group of
    the first."""
    transport, pool, sender = world(servers)
    servers[1].dies_at = None
    join = sender.join

    async def dies(rank: int, *where: Any) -> None:
        if rank == 3 and not servers[1].dead and len(sender.joined) == 1:
            servers[1].dead = True
        await join(rank, *where)

    sender.join = dies  # type: ignore[method-assign]
    await transport._stage(1)
    found = await transport._groups.form([s.endpoint for s in servers], [0, 3])
    assert list(found) == [servers[1].endpoint] == pool.condemned
    assert "rank 3 did not form" in str(found[servers[1].endpoint])
    assert not servers[0].groups and sorted(sender.left) == sorted(sender.joined)
    assert await transport._groups.form([servers[0].endpoint], [0, 3]) == {}
    assert len(servers[0].groups) == 2
    await transport.close()


@pytest.mark.parametrize("turn", [0, 1, 2])
async def test_whoever_fails_to_send_the_wave_is_given_everything_again(
    servers: list[FakeServer], turn: int
) -> None:
    transport, pool, sender = world(servers)
    broadcast, sent = sender.broadcast, 0

    async def fails_once(rank: int, group: str, bucket: int) -> None:
        nonlocal sent
        sent += 1
        if sent == turn + 1:
            raise WeightSyncError(f"rank {rank} cannot send")
        await broadcast(rank, group, bucket)

    sender.broadcast = fails_once  # type: ignore[method-assign]
    await transport.push(1)
    assert pool.versions == dict.fromkeys(pool.endpoints, 1) and not pool.condemned
    # nobody knows who is to blame: each engine gets all, in groups of its own
    assert sender.worlds == [5, 5, 3, 3, 3, 3] and sorted(sender.left) == sorted(sender.joined[:2])
    assert all(len(server.groups) == 2 for server in servers)
    await transport.close()


# ---- weights that are not copied

SMALL = dataclasses.replace(ALL, push_staging_bytes=30)


async def waits(transport: DistributedTransport, endpoint: str) -> None:
    while endpoint not in transport._waiting:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_what_is_not_copied_is_gathered_for_every_wave_and_that_is_said_once(
    servers: list[FakeServer], caplog: pytest.LogCaptureFixture
) -> None:
    cluster = dataclasses.replace(SMALL, push_wave_fraction=0.5)
    transport, pool, sender = world(servers, cluster)
    sender.copied = False
    with caplog.at_level(logging.WARNING):
        assert await transport.stage(1) is False
        await transport.deliver()
        await transport.push(2)
    assert sender.prepared == [(cluster.update_weight_buffer_size, 30)] * 2
    assert sender.passes == 4 and pool.versions == dict.fromkeys(pool.endpoints, 2)
    said = [r.getMessage() for r in caplog.records if "waits for every push" in r.getMessage()]
    assert len(said) == 1 and "36 bytes, and --push-staging-bytes is 30" in said[0]
    sender.copied = True
    assert await transport.stage(3) is True
    await transport.close()


async def test_an_engine_that_restarts_too_late_waits_for_the_next_push(
    servers: list[FakeServer],
) -> None:
    transport, pool, sender = world(servers, SMALL)
    sender.copied = False
    await transport.push(1)
    servers[0].restart()
    await transport.resync(servers[0].endpoint)  # the learner has not gone on yet
    assert servers[0].version == 1
    sender.went_on = True
    servers[0].restart()
    waiting = asyncio.create_task(transport.resync(servers[0].endpoint))
    await waits(transport, servers[0].endpoint)
    assert not servers[0].paused and not servers[0].updating
    await transport.push(2)
    await asyncio.wait_for(waiting, 10)
    assert [server.version for server in servers] == [2, 2] and not pool.condemned
    await transport.close()


async def test_one_that_joins_too_late_is_given_the_next_push_too(
    servers: list[FakeServer],
) -> None:
    """It is not among the pool's endpoints until it has its weights."""
    transport, pool, sender = world(servers, SMALL)
    sender.copied = False
    newcomer, everybody = servers[1].endpoint, pool.servers
    pool.servers = {servers[0].endpoint: servers[0]}
    await transport.push(1)
    sender.went_on = True
    waiting = asyncio.create_task(transport.resync(newcomer))
    await waits(transport, newcomer)
    pool.end_push = lambda e, version: pool.gated.remove(e)  # type: ignore[method-assign]
    await transport.push(2)
    await asyncio.wait_for(waiting, 10)
    assert everybody[newcomer].version == 2
    await transport.close()


async def test_where_no_engine_is_left_to_wait_with_it_is_an_error(
    servers: list[FakeServer],
) -> None:
    """The learner would wait for rollouts, and they for the learner."""
    transport, _, sender = world(servers, SMALL)
    sender.copied = False
    await transport.push(1)
    sender.went_on = True
    first = asyncio.create_task(transport.resync(servers[0].endpoint))
    await waits(transport, servers[0].endpoint)
    with pytest.raises(StaleWeightsError):
        await transport.resync(servers[1].endpoint)
    with pytest.raises(StaleWeightsError):
        await first
    await transport.close()
