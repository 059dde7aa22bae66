"""Pushes out of the learner's memory, against servers that speak SGLang's control endpoints and
nothing else; pool and lender are fakes at their seams."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence

import pytest

from configs.schema import ClusterConfig
from pipeline.core.errors import ConfigError, WeightSyncError
from stages.publish import make_transport
from stages.publish.tensor import TensorTransport
from tests.manual_time import ManualTime
from tests.unit.stages.publish.fakes import (
    FakeLender,
    FakePool,
    FakeSender,
    FakeServer,
    no_sleep,
    running,
)

COLOCATED = ClusterConfig(colocate=True, weight_transport="tensor")
Fixture = tuple[TensorTransport, FakePool, FakeLender]


@pytest.fixture
async def servers() -> AsyncIterator[list[FakeServer]]:
    async with running(2) as fakes:
        yield fakes


@pytest.fixture
async def tensor(servers: list[FakeServer]) -> AsyncIterator[Fixture]:
    """Two engines of two ranks, on the devices of the learner's ranks 0 to 3."""
    pool, lender = FakePool(servers), FakeLender()
    ranks = {servers[0].endpoint: (0, 1), servers[1].endpoint: (2, 3)}
    transport = TensorTransport(
        pool, lender, COLOCATED, ranks.__getitem__, time=ManualTime(), sleep=no_sleep
    )
    yield transport, pool, lender
    await transport.close()


def told(server: FakeServer) -> list[list[str]]:
    """The handles that this engine was given, bucket by bucket."""
    return [
        [base64.b64decode(one).decode() for one in body["serialized_named_tensors"]]
        for path, body in server.bodies
        if path == "update_weights_from_tensor"
    ]


async def test_every_rank_of_an_engine_gets_the_handle_of_the_learner_rank_on_its_device(
    tensor: Fixture, servers: list[FakeServer]
) -> None:
    transport, pool, lender = tensor
    result = await transport.push(1)
    assert (result.num_engines, result.num_bytes) == (2, 6 * 4 + 4 * 2 + 4)
    assert told(servers[0]) == [[f"bucket {b} of rank {r}, 0" for r in (0, 1)] for b in (0, 1)]
    assert told(servers[1]) == [[f"bucket {b} of rank {r}, 0" for r in (2, 3)] for b in (0, 1)]
    bodies = [b for path, b in servers[0].bodies if path == "update_weights_from_tensor"]
    assert [body.get("weight_version") for body in bodies] == [None, "1"]
    assert all(
        body["load_format"] == "flattened_bucket" and body["flush_cache"] is False
        for body in bodies
    )
    assert servers[0].calls == [
        "pause_generation",
        "begin_weight_update",
        "update_weights_from_tensor",
        "update_weights_from_tensor",
        "end_weight_update",
        "model_info",
        "continue_generation",
    ]
    assert pool.versions == dict.fromkeys(pool.endpoints, 1)
    assert not lender.out and lender.gathered == [COLOCATED.update_weight_buffer_size]
    await transport.close()
    assert lender.closed


async def test_engines_on_one_device_get_a_handle_each(servers: list[FakeServer]) -> None:
    pool, lender = FakePool(servers), FakeLender()
    cluster = ClusterConfig(colocate=True, weight_transport="tensor", push_wave_fraction=1.0)
    transport = TensorTransport(pool, lender, cluster, lambda _: (0,), sleep=no_sleep)
    await transport.push(1)
    assert lender.lent == [(0, {0: 2}), (1, {0: 2})]
    first, second = told(servers[0])[0], told(servers[1])[0]
    assert sorted([*first, *second]) == ["bucket 0 of rank 0, 0", "bucket 0 of rank 0, 1"]
    await transport.close()


async def test_an_engine_that_fails_in_the_middle_is_ended_and_the_other_is_not(
    tensor: Fixture, servers: list[FakeServer]
) -> None:
    transport, pool, lender = tensor
    servers[0].refuse["update_weights_from_tensor"] = 1
    result = await transport.push(1)
    assert pool.condemned == [servers[0].endpoint] and result.num_engines == 1
    assert await pool.settled(servers[0].endpoint)
    assert servers[1].calls.count("pause_generation") == 1
    assert servers[0].version == 1 and len(lender.gathered) == 1
    assert not lender.out  # also what the failed one was lent


async def test_a_loan_that_fails_leaves_no_engine_on_mixed_weights(
    tensor: Fixture, servers: list[FakeServer]
) -> None:
    transport, pool, lender = tensor
    lender.failures = [WeightSyncError("/dev/shm is full")]
    await transport.push(1)
    assert not pool.condemned  # nothing had reached it
    assert pool.versions == dict.fromkeys(pool.endpoints, 1)


async def test_an_engine_elsewhere_is_refused_before_anything_is_gathered(
    servers: list[FakeServer],
) -> None:
    def beside(endpoint: str) -> Sequence[int]:
        raise ConfigError(f"{endpoint} is somebody else's")

    lender = FakeLender()
    transport = TensorTransport(FakePool(servers), lender, COLOCATED, beside, sleep=no_sleep)
    with pytest.raises(ConfigError, match="somebody else's"):
        await transport.push(1)
    assert not lender.gathered and not servers[0].calls
    await transport.close()


async def test_no_process_group_holds_learner_and_engine_of_one_gpu(
    servers: list[FakeServer],
) -> None:
    cluster = ClusterConfig(colocate=True, weight_transport="distributed")
    with pytest.raises(ConfigError, match="two ranks on one device"):
        make_transport(FakePool(servers), FakeSender(), cluster, device="cuda")
