"""Pushes that reach a wave of engines at once: which engines, in which group, and what becomes of a
wave in which one fails."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import ClusterConfig
from pipeline.core.errors import LearnerError, LearnerLostError, WeightSyncError
from stages.publish import collective
from stages.publish.collective import together
from stages.publish.control import AnsweredError
from stages.publish.distributed import DistributedTransport
from stages.publish.waves import split_waves
from tests.manual_time import ManualTime
from tests.unit.stages.publish.fakes import FakePool, FakeSender, FakeServer, no_sleep, running

ALL = ClusterConfig(push_wave_fraction=1.0)
UPDATE = "update_weights_from_distributed"


@given(
    count=st.integers(0, 2000), fraction=st.floats(0.001, 1.0) | st.sampled_from([1 / 3, 0.1, 0.5])
)
def test_waves_are_all_engines_once_in_equal_parts(count: int, fraction: float) -> None:
    endpoints = [str(i) for i in range(count)]
    waves = split_waves(endpoints, fraction)
    assert [e for wave in waves for e in wave] == endpoints
    sizes = {len(wave) for wave in waves}
    assert not sizes or (min(sizes) > 0 and max(sizes) - min(sizes) <= 1)
    assert len(waves) <= 1 / fraction + 1
    if fraction < 0.999 and count > 1:
        assert len(waves) > 1, "a part of the pool always decodes"


def test_the_number_of_waves_does_not_grow_with_the_pool() -> None:
    assert [len(split_waves("abcdef"[:n], 0.5)) for n in range(7)] == [0, 1, 2, 2, 2, 2, 2]
    assert [len(split_waves("x" * n, 0.3)) for n in (1, 2, 3, 4, 1024)] == [1, 2, 3, 4, 4]
    assert len(split_waves("abc", 1.0)) == 1


@pytest.fixture
async def servers() -> AsyncIterator[list[FakeServer]]:
    async with running(4) as fakes:
        yield fakes


World = tuple[DistributedTransport, FakePool, FakeSender]


def world(servers: list[FakeServer], cluster: ClusterConfig = ALL) -> World:
    pool, sender = FakePool(servers), FakeSender()
    transport = DistributedTransport(pool, sender, cluster, time=ManualTime(), sleep=no_sleep)
    return transport, pool, sender


def groups(server: FakeServer) -> list[tuple[int, int]]:
    """(rank_offset, world_size) of every group that it was told to join."""
    return [
        (body["rank_offset"], body["world_size"])
        for path, body in server.bodies
        if path == "init_weights_update_group"
    ]


async def test_one_broadcast_reaches_all_ranks_of_a_wave(servers: list[FakeServer]) -> None:
    cluster = ClusterConfig(rollout_num_gpus=8, rollout_num_gpus_per_engine=2)
    transport, pool, sender = world(servers, cluster)
    gated: list[int] = []
    broadcast = sender.broadcast

    async def watched(rank: int, group_name: str, bucket: int) -> None:
        gated.append(len(pool.gated))
        await broadcast(rank, group_name, bucket)

    sender.broadcast = watched  # type: ignore[method-assign]
    assert (await transport.push(1)).num_engines == 4
    assert sender.worlds == [5, 5] and gated == [2, 2, 2, 2]
    assert [groups(server) for server in servers] == [[(1, 5)], [(3, 5)], [(1, 5)], [(3, 5)]]
    first, second = sender.joined
    assert sender.sent == [(first, 0), (first, 1), (second, 0), (second, 1)]
    # the second wave decodes while the first is paused, and its group is formed before its pause
    assert servers[2].calls[:2] == ["init_weights_update_group", "pause_generation"]
    await transport.push(2)
    assert len(sender.joined) == 2, "groups are kept"
    assert pool.versions == dict.fromkeys(pool.endpoints, 2)
    await transport.close()


async def test_waves_follow_the_pool(servers: list[FakeServer]) -> None:
    """Engines come and go between two pushes: their waves' groups are formed anew, and whoever
    stays lets go of the old one."""
    transport, pool, sender = world(servers, ALL)
    everybody = pool.servers
    pool.servers = dict(list(everybody.items())[:3])
    await transport.push(1)
    pool.servers = dict(list(everybody.items())[1:])
    await transport.push(2)
    assert sender.worlds == [4, 4] and sender.left == sender.joined[:1]
    assert [groups(server) for server in servers] == [
        [(1, 4)],
        [(2, 4), (1, 4)],
        [(3, 4), (2, 4)],
        [(3, 4)],
    ]
    assert [len(server.groups) for server in servers[1:]] == [1, 1, 1]
    assert [server.version for server in servers] == [1, 2, 2, 2]
    await transport.close()


async def test_a_death_in_mid_broadcast_condemns_the_dead_alone(servers: list[FakeServer]) -> None:
    """The others, half of whose weights are new, stay paused and are given all of them again, in a
    group without it."""
    transport, pool, sender = world(servers)
    seen: list[int] = []

    async def broadcast(rank: int, group_name: str, bucket: int) -> None:
        seen.append(bucket)
        if seen == [0, 1]:  # the second bucket is not received by anybody
            for server in servers[1:]:
                server.refuse[UPDATE] = 1
            servers[0].dies_at = UPDATE
            raise WeightSyncError("connection closed by peer")

    sender.broadcast = broadcast  # type: ignore[method-assign]
    servers[0].entered[UPDATE] = asyncio.Event()
    result = await transport.push(1)
    assert pool.condemned == [servers[0].endpoint] and result.num_engines == 3
    await pool.settled(servers[0].endpoint)
    assert seen == [0, 1, 0, 1, 0, 1]  # the wave, those who stayed, the one that came back
    assert sender.worlds == [5, 4, 2]
    for server in servers[1:]:
        calls = server.calls
        broken = [i for i, call in enumerate(calls) if call == UPDATE][1]
        assert calls[broken + 1 :] == [
            "destroy_weights_update_group",
            "init_weights_update_group",
            UPDATE,
            UPDATE,
            "end_weight_update",
            "model_info",
            "continue_generation",
        ]
        assert calls.count("begin_weight_update") == 1, "the update was open all the time"
        assert not server.paused and server.version == 1 and len(server.groups) == 1
    assert servers[0].version == 1 and not pool.gated
    await transport.close()


async def test_where_nobody_knows_who_is_to_blame_each_is_given_everything_singly(
    servers: list[FakeServer],
) -> None:
    transport, pool, sender = world(servers)
    sender.failures = [WeightSyncError("a wire is cut")]
    await transport.push(1)
    assert sender.worlds == [5, 2, 2, 2, 2] and not pool.condemned
    assert pool.versions == dict.fromkeys(pool.endpoints, 1)
    assert all(s.calls.count("continue_generation") == 1 for s in servers)
    await transport.close()


async def test_one_that_takes_no_weights_is_found_and_ended(servers: list[FakeServer]) -> None:
    """It answers that it cannot load what it is given: in the wave nobody knows that it is it."""
    transport, pool, _ = world(servers)
    servers[2].refuse[UPDATE] = 2
    await transport.push(1)
    assert pool.condemned == [servers[2].endpoint]
    await pool.settled(servers[2].endpoint)
    assert pool.versions == dict.fromkeys(pool.endpoints, 1)
    await transport.close()


async def test_one_that_refuses_the_update_does_not_hold_up_its_wave(
    servers: list[FakeServer],
) -> None:
    transport, pool, sender = world(servers)
    servers[1].refuse["begin_weight_update"] = 1
    await transport.push(1)
    assert sender.worlds == [5, 4, 2] and not pool.condemned
    assert pool.reports == [servers[1].endpoint]
    assert pool.versions == dict.fromkeys(pool.endpoints, 1)
    await transport.close()


async def test_an_update_that_was_opened_in_vain_is_closed_before_the_engine_goes_on(
    servers: list[FakeServer],
) -> None:
    """One refuses after another has opened its update, and a group without it does not form: the
    other goes on with its old weights, and its next update may be opened."""
    transport, pool, sender = world(servers[:2])
    servers[1].refuse["begin_weight_update"] = 1
    join = sender.join

    async def fails_second(*where: Any) -> None:
        await join(*where)
        if len(sender.joined) == 2:
            raise WeightSyncError("port taken")

    sender.join = fails_second  # type: ignore[method-assign]
    await transport.push(1)
    assert not pool.condemned and pool.versions == dict.fromkeys(pool.endpoints, 1)
    calls = servers[0].calls
    assert calls[calls.index("begin_weight_update") :][:5] == [
        "begin_weight_update",
        "destroy_weights_update_group",
        "init_weights_update_group",
        "destroy_weights_update_group",
        "end_weight_update",
    ]
    assert pool.reports.count(servers[0].endpoint) == 1
    await transport.close()


async def test_a_group_that_does_not_form_says_who_was_missing_and_forms_without(
    servers: list[FakeServer],
) -> None:
    transport, pool, sender = world(servers)
    servers[3].dies_at = "init_weights_update_group"
    pool.lost.add(servers[3].endpoint)
    # known as lost only when it is looked for
    pool.is_up = lambda endpoint: endpoint not in pool.down  # type: ignore[method-assign]
    assert (await transport.push(1)).num_engines == 3
    assert sender.worlds == [5, 4] and pool.condemned == [servers[3].endpoint]
    assert [server.version for server in servers] == [1, 1, 1, 0]
    assert all(len(server.groups) == 1 for server in servers[:3])
    failed = await transport._groups.form([e.endpoint for e in servers], [0])
    assert list(failed) == [servers[3].endpoint]
    assert f"did not form, for {servers[3].endpoint}:" in str(failed[servers[3].endpoint])
    await transport.close()


async def test_one_that_is_silent_while_others_are_through_is_ended(
    servers: list[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collective, "GRACE_SECONDS", 0.2)
    transport, pool, sender = world(servers)
    servers[1].entered[UPDATE], servers[1].blocked[UPDATE] = asyncio.Event(), asyncio.Event()
    push = asyncio.create_task(transport.push(1))
    await servers[1].entered[UPDATE].wait()
    servers[1].blocked.pop(UPDATE)  # its next life hears
    await push
    assert pool.condemned == [servers[1].endpoint]
    await pool.settled(servers[1].endpoint)
    assert sender.worlds == [5, 4, 2]
    assert pool.versions == dict.fromkeys(pool.endpoints, 1)
    await transport.close()


async def test_a_cancelled_push_ends_those_of_a_wave_that_hold_some_of_both(
    servers: list[FakeServer],
) -> None:
    transport, pool, _ = world(servers)
    servers[0].entered[UPDATE], servers[0].blocked[UPDATE] = asyncio.Event(), asyncio.Event()
    push = asyncio.create_task(transport.push(1))
    await servers[0].entered[UPDATE].wait()
    push.cancel()
    with pytest.raises(asyncio.CancelledError):
        await push
    servers[0].blocked.pop(UPDATE).set()
    assert sorted(pool.condemned) == sorted(pool.endpoints) and not pool.gated
    assert not any("continue_generation" in server.calls for server in servers)
    await transport.close()


async def test_the_death_of_the_learner_ends_the_push_as_that(servers: list[FakeServer]) -> None:
    transport, pool, sender = world(servers)
    sender.failures = [LearnerError("rank 0 died")]  # type: ignore[list-item]
    with pytest.raises(LearnerError, match="rank 0 died"):
        await transport.push(1)
    assert not pool.gated
    await transport.close()


async def lost_half_way(servers: list[FakeServer], cluster: ClusterConfig) -> World:
    """A push of version 2 to all, whose learner is lost when the first bucket is sent."""
    transport, pool, sender = world(servers, cluster)
    await transport.push(1)
    assert len(sender.buckets[0]) > 1
    sender.failures = [LearnerLostError("rank 0 died")]  # type: ignore[list-item]
    with pytest.raises(LearnerLostError, match="rank 0 died"):
        await transport.push(2)
    return transport, pool, sender


@pytest.mark.parametrize("mode", ["in_place", "retract", "drain"])
async def test_a_learner_that_is_lost_half_way_leaves_engines_to_the_next(
    servers: list[FakeServer], mode: Any
) -> None:
    """Those with half of a push stay paused and out of service; the next learner gives them all of
    its own weights, in new groups."""
    cluster = dataclasses.replace(ALL, weight_update_mode=mode)
    transport, pool, sender = await lost_half_way(servers, cluster)
    assert pool.condemned == [] and pool.gated == set(pool.endpoints)
    assert all(server.paused for server in servers)
    assert not any(server.groups for server in servers)
    pauses = [server.calls.count("pause_generation") for server in servers]
    transport.sender_lost()
    await transport.sender_back()
    sender.groups = set()  # it is another process
    await transport.push(3)
    assert pool.versions == dict.fromkeys(pool.endpoints, 3) and not pool.gated
    assert pool.condemned == [] and not any(server.paused for server in servers)
    assert [server.calls.count("pause_generation") for server in servers] == pauses
    assert [server.version for server in servers] == [3] * 4
    await transport.close()


async def test_engines_that_nobody_comes_for_are_ended(servers: list[FakeServer]) -> None:
    transport, pool, _ = await lost_half_way(servers, ALL)
    await transport.close()
    assert sorted(pool.condemned) == sorted(pool.endpoints) and not pool.gated


async def test_an_engine_that_restarts_meanwhile_waits_for_the_next_learner(
    servers: list[FakeServer],
) -> None:
    transport, pool, sender = await lost_half_way(servers, ALL)
    transport.sender_lost()
    pool.condemn(servers[0].endpoint, "it died")
    restarted = asyncio.create_task(pool.settled(servers[0].endpoint))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not restarted.done() and servers[0].version == 0
    await transport.sender_back()
    sender.groups = set()
    await transport.push(3)
    await restarted
    assert pool.versions == dict.fromkeys(pool.endpoints, 3) and not pool.gated
    assert pool.condemned == [servers[0].endpoint]
    await transport.close()


async def test_drain_lets_what_runs_end_first(servers: list[FakeServer]) -> None:
    cluster = dataclasses.replace(ALL, weight_update_mode="drain")
    transport, pool, _ = world(servers, cluster)
    pool.in_flight[servers[0].endpoint] = asyncio.Event()
    servers[1].entered["flush_cache"] = servers[1].blocked["flush_cache"] = asyncio.Event()
    push = asyncio.create_task(transport.push(1))
    await servers[1].entered["flush_cache"].wait()
    assert servers[0].endpoint in pool.gated and not servers[0].paused
    pool.in_flight[servers[0].endpoint].set()
    await push
    assert servers[0].calls[1:4] == ["pause_generation", "flush_cache", "begin_weight_update"]
    assert pool.versions == dict.fromkeys(pool.endpoints, 1)
    await transport.close()


async def test_together_raises_what_is_no_failure_of_a_push() -> None:
    async def fails(error: Exception) -> None:
        raise error

    hung_up: list[bool] = []

    async def hang_up() -> None:
        hung_up.append(True)

    async def fine() -> None: ...

    with pytest.raises(LearnerError):
        await together({"a": fine()}, fails(LearnerError("died")), hang_up)
    broken = await together({"a": fails(AnsweredError("no")), "b": fine()}, fine(), hang_up)
    assert broken is not None and broken.first == {"a"} and not broken.unwell
    assert str(broken.reason("b")) == "no" and hung_up == [True, True]
    assert await together({"a": fine(), "b": fine()}, fine(), hang_up) is None
