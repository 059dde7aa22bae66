"""Where engines go when nodes come and go; Ray is a fake at the seam of the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pipeline.core.errors import ClusterError, ConfigError, NoRoomError
from pipeline.schedule.placement import Node, Place, Wanted
from pipeline.workers.pools import Pools

DRIVER = Node(id="d", address="10.0.0.1", devices=1, free=1, is_driver=True)
OTHER = Node(id="o", address="10.0.0.2", devices=1, free=1)
BACK = Node(id="p", address="10.0.0.2", devices=1, free=1)  # the same, after a new `ray start`


class FakeCluster:
    is_own = False
    gpus = 0.0

    def __init__(self, *nodes: Node) -> None:
        self.alive = list(nodes)

    def start(self) -> None: ...

    def nodes(self) -> list[Node]:
        return self.alive

    def num_gpus(self) -> float:
        return self.gpus


class FakePools(Pools):
    """Reserves nothing; a reservation is the node ids."""

    refuses: ClusterError | None = None

    def _group(self, places: Sequence[Place], devices: Sequence[int], seconds: float = 0) -> Any:
        if self.refuses is not None:
            raise self.refuses
        return [place.node.id for place in places]

    def _options(self, group: Any, bundle: int, devices: float) -> dict[str, Any]:
        return {"node": group[bundle]}

    def leave(self, index: int) -> None:
        if self._engine_groups.pop(index, None) is not None:
            self._note_engine(index, ())


def pools_of(
    cluster: FakeCluster, *engines: int, colocate: bool = False, guessed: bool = False
) -> FakePools:
    wanted = Wanted(
        actor_num_nodes=1, actor_num_gpus_per_node=1, engines=engines, colocate=colocate
    )
    pools = FakePools(
        wanted, address="10.0.0.1:6379", on_gpu=False, object_store_bytes=1, guessed=guessed
    )
    pools.cluster = cluster  # type: ignore[assignment]
    return pools


async def where(pools: Pools, index: int) -> list[str]:
    return [berth.options["node"] for berth in await pools.engine_berths(index)]


async def test_an_engine_goes_to_the_node_that_comes_back() -> None:
    cluster = FakeCluster(DRIVER, OTHER)
    pools = pools_of(cluster, 1)
    assert await where(pools, 0) == ["o"] and pools.spans_nodes

    cluster.alive = [replace(DRIVER, free=0)]
    assert not await pools.move_engine(0)
    for _ in range(2):  # asked again and again
        assert await pools.move_engine(0)  # it has no room that could be gone
        with pytest.raises(NoRoomError, match="engine 0: no node has 1 devices free"):
            await pools.engine_berths(0)
    assert pools.spans_nodes  # though nothing is elsewhere now

    cluster.alive.append(BACK)
    assert await where(pools, 0) == ["p"]
    assert await pools.move_engine(0) and await where(pools, 0) == ["p"]


async def test_room_that_is_gone_before_it_is_reserved_is_no_room() -> None:
    cluster = FakeCluster(DRIVER, OTHER)
    pools = pools_of(cluster, 1)
    await pools.start()
    cluster.alive = [BACK]
    pools.refuses = ClusterError("not reserved within 60 s")
    with pytest.raises(NoRoomError, match="not reserved"):
        await pools.move_engine(0)


async def test_memory_is_lent_to_engines_on_devices_of_the_learner_alone() -> None:
    one = pools_of(FakeCluster(replace(DRIVER, free=4, devices=4)), 1, 1)
    await one.start()
    with pytest.raises(ConfigError, match="engine 1 shares no devices with the learner"):
        one.ranks_beside(1)
    shared = pools_of(FakeCluster(DRIVER), 1, colocate=True)
    await shared.start()
    assert list(shared.ranks_beside(0)) == [0]
    apart = pools_of(FakeCluster(replace(DRIVER, free=0), OTHER), 1, colocate=True)
    await apart.start()
    with pytest.raises(ConfigError, match=r"engine 0 is on another node \(10.0.0.2\)"):
        apart.ranks_beside(0)


async def test_a_clusters_gpus_are_not_passed_over() -> None:
    """The driver may be on a node that has none."""
    cluster = FakeCluster(DRIVER, OTHER)
    cluster.gpus = 16.0
    with pytest.raises(ConfigError, match=r"--device auto.* has 16\. Say --device cuda"):
        await pools_of(cluster, 1, guessed=True).start()
    await pools_of(cluster, 1).start()
    cluster.gpus = 0.0
    await pools_of(cluster, 1, guessed=True).start()
