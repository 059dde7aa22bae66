"""--check-weight-update-equal: what engines hold is compared by checksum."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from configs.schema import ClusterConfig
from pipeline.core.errors import WeightSyncError
from stages.publish.distributed import DistributedTransport
from tests.manual_time import ManualTime
from tests.unit.stages.publish.fakes import FakePool, FakeSender, FakeServer, no_sleep, running


@pytest.fixture
async def servers() -> AsyncIterator[list[FakeServer]]:
    async with running(2) as fakes:
        yield fakes


@pytest.fixture
async def transport(servers: list[FakeServer]) -> AsyncIterator[DistributedTransport]:
    transport = DistributedTransport(
        FakePool(servers),
        FakeSender(),
        ClusterConfig(check_weight_update_equal=True),
        time=ManualTime(),
        sleep=no_sleep,
    )
    yield transport
    await transport.close()


async def test_a_push_that_brings_the_checkpoint_again_is_one(
    transport: DistributedTransport, servers: list[FakeServer]
) -> None:
    await transport.wipe_loaded()
    assert [server.weights for server in servers] == ["wiped", "wiped"]
    await transport.push(0)
    for server in servers:
        server.brings = "trained"
    await transport.push(1)  # from here on only the engines among themselves


async def test_a_push_that_brings_something_else_names_the_tensor(
    transport: DistributedTransport, servers: list[FakeServer]
) -> None:
    await transport.wipe_loaded()
    for server in servers:
        server.brings = "converted wrongly"
    with pytest.raises(WeightSyncError, match=r"1 of 2 tensors .* the checkpoint: b, rank 0$"):
        await transport.push(0)


async def test_engines_that_hold_different_weights_are_told(
    transport: DistributedTransport, servers: list[FakeServer]
) -> None:
    servers[1].brings = "half of it"
    first, second = sorted(server.endpoint for server in servers)
    with pytest.raises(WeightSyncError, match=f"tensors of {second} are not those of {first}"):
        await transport.push(1)


async def test_engines_that_loaded_different_weights_are_told_before_the_push(
    transport: DistributedTransport, servers: list[FakeServer]
) -> None:
    servers[0].weights = "another checkpoint"
    with pytest.raises(WeightSyncError, match="after loading the checkpoint"):
        await transport.wipe_loaded()


async def test_an_engine_that_was_started_again_meanwhile_is_left_out(
    transport: DistributedTransport, servers: list[FakeServer]
) -> None:
    await transport.stage(1)
    deliver = transport._all_delivered

    async def then_one_restarts() -> None:
        await deliver()
        servers[0].restart()
        servers[0].weights = "as the checkpoint has it"

    transport._all_delivered = then_one_restarts  # type: ignore[method-assign]
    await transport.deliver()


async def test_without_the_flag_nothing_is_asked(servers: list[FakeServer]) -> None:
    transport = DistributedTransport(
        FakePool(servers), FakeSender(), ClusterConfig(), time=ManualTime(), sleep=no_sleep
    )
    await transport.push(1)
    await transport.close()
    assert all("weights_checker" not in server.calls for server in servers)
