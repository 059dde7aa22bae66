"""The two pools of a run on one Ray cluster: where the learner's ranks and the engines' hosts go.

Everything is planned before anything of it starts (pipeline/schedule/placement.py), and then
reserved: a placement group for the learner, with a bundle a rank, and one for every engine, with a
bundle a node, so that an engine can be replaced without touching the rest. Under --colocate engines
are hosted in the learner's bundles."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from pipeline.core.devices import num_devices
from pipeline.core.errors import ClusterError, ConfigError, NoRoomError
from pipeline.core.gpu_environment import forwarded
from pipeline.schedule.placement import Node, Place, Plan, Wanted, plan, plan_engine, plan_learner
from pipeline.workers.ray_cluster import RayCluster, take_sigterm_back
from stages.publish.leftovers import remove_shared_memory

ROOT = Path(__file__).resolve().parents[2]
# Logical slots beside those that are asked for, on a cluster of our own without GPUs: for engines
# that are added while the run goes on.
SPARE_SLOTS = 64
RESERVE_SECONDS = 60.0  # for Ray to reserve what was free a moment ago
# for ranks that were ended to give their room back, or for a dead node to be noticed, before the
# learner's room is looked for anew; and in all
MOVE_ATTEMPT_SECONDS, MOVE_SECONDS = 10.0, 90.0
MOVE_PAUSE_SECONDS = 0.5  # between two looks
SHARED = 0.5  # of a device's bundle for the learner's rank, and as much for the engine


@dataclass(frozen=True, slots=True)
class Berth:
    """One bundle: where an actor of a run goes."""

    place: Place
    options: Mapping[str, Any]  # for Ray's `.options()`


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where an actor is."""

    pid: int
    node: str  # Ray's id of its node
    address: str
    gpus: tuple[str, ...]  # Ray's ids of the devices that it was given


class Pools:
    """Started by whoever comes first, learner or engines; ended once, after both."""

    def __init__(
        self,
        wanted: Wanted,
        *,
        address: str | None,
        on_gpu: bool,
        object_store_bytes: int,
        guessed: bool = False,
    ) -> None:
        """`address`: of the Ray cluster to join; None starts one on this machine. `guessed`: is
        `on_gpu` what was found on this machine, and nobody's wish?"""
        self._wanted, self._on_gpu, self._guessed = wanted, on_gpu, guessed
        self._engine_devices = max(wanted.engines, default=1)
        own = num_devices() if on_gpu else wanted.devices + SPARE_SLOTS
        self.cluster = RayCluster(
            address, devices=own, on_gpu=on_gpu, object_store_bytes=object_store_bytes
        )
        self._own_devices = own
        self._starting: asyncio.Future[None] | None = None
        self._plan: Plan | None = None
        self._spans_nodes = False  # at the start: what listens on loopback stays where it is
        self._learner_group: Any = None
        self._engine_groups: dict[int, Any] = {}
        self._gpus: asyncio.Future[list[str]] | None = None  # of the learner's ranks, in order
        self._pids: set[int] = set()

    # ---- life

    async def start(self) -> Plan:
        """Brings up or joins the cluster and reserves the learner's room and every engine's.

        Raises ConfigError where that does not fit, ClusterError where Ray does not start."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        await asyncio.shield(self._starting)
        return self.plan

    async def _start(self) -> None:
        if self.cluster.is_own:  # it is known what it will have: refused before it is started
            here = Node(
                id="here",
                address="127.0.0.1",
                devices=self._own_devices,
                free=self._own_devices,
                is_driver=True,
            )
            plan([here], self._wanted)
        await asyncio.to_thread(self.cluster.start)
        take_sigterm_back()
        if self._guessed and not self._on_gpu:
            await self._refuse_gpus()
        self._gpus = asyncio.get_running_loop().create_future()
        self._plan = plan(await asyncio.to_thread(self.cluster.nodes), self._wanted)
        self._spans_nodes = self._plan.spans_nodes
        await asyncio.to_thread(self._reserve, self._plan)

    async def _refuse_gpus(self) -> None:
        """Raises ConfigError for a cluster with GPUs that this run would not use."""
        if count := await asyncio.to_thread(self.cluster.num_gpus):
            raise ConfigError(
                f"--device auto: this machine has no GPU, and the Ray cluster has {count:g}. Say"
                " --device cuda to use them, or --device cpu"
            )

    def _reserve(self, made: Plan) -> None:
        if made.learner:
            self._learner_group = self._learner_room(made.learner, RESERVE_SECONDS)
        for index, places in enumerate(made.engines):
            if places[0].rank is None:
                self._engine_groups[index] = self._group(places, [p.devices for p in places])

    def _learner_room(self, places: Sequence[Place], seconds: float) -> Any:
        singles = [place for place in places for _ in range(place.devices)]
        return self._group(singles, [1] * len(singles), seconds)

    def _group(
        self, places: Sequence[Place], devices: Sequence[int], seconds: float = RESERVE_SECONDS
    ) -> Any:
        from ray.util.placement_group import placement_group, remove_placement_group

        group = placement_group(
            [self._resources(count) for count in devices],
            strategy="PACK",
            bundle_label_selector=[{"ray.io/node-id": place.node.id} for place in places],
        )
        if group.wait(seconds):
            return group
        remove_placement_group(group)
        where = ", ".join(sorted({place.node.address for place in places}))
        raise ClusterError(
            f"Ray did not reserve {sum(devices)} devices on {where} within {seconds:g} s,"
            " though they were free: is another job taking them? (`ray status`)"
        )

    def _resources(self, devices: float) -> dict[str, float]:
        """Of a bundle; a GPU comes with one CPU for the process that feeds it."""
        return {"GPU": devices, "CPU": min(devices, 1)} if self._on_gpu else {"CPU": devices}

    async def close(self) -> None:
        """Ends what this run has on the cluster, and the cluster where it is its own. It may be
        called in any state, and more than once."""
        if self._starting is not None:
            # a thread cannot be cancelled, and would make processes and files behind our back
            await asyncio.wait([self._starting])
            if not self._starting.cancelled():
                self._starting.exception()  # whoever asked has been told
        await asyncio.to_thread(self.cluster.stop, self._pids)
        self._remove_shared_memory()
        self._pids.clear()

    def kill_now(self) -> None:
        """Ends every process of ours on this machine at once, without asking any of them."""
        self.cluster.kill_now(self._pids)
        self._remove_shared_memory()

    def _remove_shared_memory(self) -> None:
        if not self.spans_nodes:  # else the numbers may be those of processes elsewhere
            remove_shared_memory(self._pids)

    def note(self, pid: int) -> None:
        """A process that lives on the cluster."""
        self._pids.add(pid)

    # ---- where things are

    @property
    def plan(self) -> Plan:
        """Where everything is. Only after start()."""
        assert self._plan is not None, "before start()"
        return self._plan

    @property
    def spans_nodes(self) -> bool:
        """Was anything planned elsewhere than the run's own process? Then servers listen on their
        node's address, else on loopback, also when nodes come and go later."""
        return self._spans_nodes

    def learner_berths(self) -> list[Berth]:
        """One for every rank, in the plan's order."""
        places = [place for place in self.plan.learner for _ in range(place.devices)]
        share = SHARED if self.plan.shared else 1
        return [
            Berth(place, self._options(self._learner_group, i, share))
            for i, place in enumerate(places)
        ]

    def placed(self, gpus: Sequence[str]) -> None:
        """The learner's ranks have these devices: under --colocate the engines' too."""
        if self._gpus is not None and not self._gpus.done():
            self._gpus.set_result(list(gpus))

    async def move_learner(self, ended: Sequence[Where]) -> None:
        """Finds room for the learner's ranks anew: where they were if these nodes are alive, else
        among what is free. Those that were `ended` and have not gone are killed.

        Raises ClusterError where there is no room within MOVE_SECONDS. A learner that shares its
        devices with engines has no other room than the old one."""
        from ray.util.placement_group import remove_placement_group

        self._kill_here(ended)
        if self.plan.shared:
            return
        with contextlib.suppress(Exception):  # it ends what is still in there, on every node
            remove_placement_group(self._learner_group)
        until, why = time.monotonic() + MOVE_SECONDS, "no node has them free"
        while time.monotonic() < until:
            nodes = await asyncio.to_thread(self.cluster.nodes)
            places = self._new_places(nodes)
            if places is not None:
                try:
                    self._learner_group = await asyncio.to_thread(
                        self._learner_room, places, MOVE_ATTEMPT_SECONDS
                    )
                except ClusterError as error:
                    why = str(error)
                else:
                    self._plan = replace(self.plan, learner=places)
                    return
            await asyncio.sleep(MOVE_PAUSE_SECONDS)
        wanted = self._wanted
        raise ClusterError(
            f"no room for {wanted.actor_num_nodes} x {wanted.actor_num_gpus_per_node} learner ranks"
            f" within {MOVE_SECONDS:g} s: {why}. Add nodes (`ray start --address ...`), then go on"
            " with --load"
        )

    def _new_places(self, nodes: Sequence[Node]) -> tuple[Place, ...] | None:
        alive = {node.id for node in nodes}
        if all(place.node.id in alive for place in self.plan.learner):
            return self.plan.learner
        if not self.spans_nodes:  # what listens on loopback cannot be reached from elsewhere
            nodes = [node for node in nodes if node.is_driver]
        return plan_learner(nodes, self._wanted)

    def _kill_here(self, ended: Sequence[Where]) -> None:
        """A rank that is stopped (SIGSTOP, a debugger) hears of nothing that Ray tells it."""
        for where in ended:
            if where.node == self.plan.driver:
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(where.pid)
                    if "ray::" in " ".join(process.cmdline()):  # the number may be another's now
                        process.kill()

    async def engine_berths(self, index: int) -> list[Berth]:
        """Those of engine `index`, the one that takes requests first."""
        made = await self.start()
        planned = made.engines[index] if index < len(made.engines) else ()
        if not planned and not await self._place_engine(index):
            raise NoRoomError(
                f"engine {index}: no node has {self._engine_devices} devices free for one more"
                " engine. Add nodes (`ray start --address ...`), or drain another one first"
            )
        places = self.plan.engines[index]
        if places[0].rank is not None:
            return [
                Berth(place, self._options(self._learner_group, place.rank or 0, SHARED))
                for place in places
            ]
        group = self._engine_groups[index]
        return [
            Berth(place, self._options(group, i, place.devices)) for i, place in enumerate(places)
        ]

    def ranks_beside(self, index: int) -> Sequence[int]:
        """The learner's ranks that have the devices of engine `index`, in the order of these: the
        engine is given them in that order (`gpus_of`).

        Raises ConfigError for one that has devices of its own, or is on another machine than the
        run."""
        places = self.plan.engines[index]
        rank = places[0].rank if len(places) == 1 else None
        if rank is None or self.spans_nodes:
            why = "shares no devices with the learner" if rank is None else "is on another node"
            raise ConfigError(
                f"--weight-transport tensor: engine {index} {why}"
                f" ({', '.join(place.node.address for place in places)}), and is told where in"
                " memory the weights are. Use --weight-transport disk"
            )
        return range(rank, rank + places[0].devices)

    async def move_engine(self, index: int) -> bool:
        """Finds room for an engine whose host is gone: the old one if its nodes are alive, else
        among what is free. False where there is none now.

        One that shares the learner's devices has no other room."""
        made = await self.start()
        nodes = await asyncio.to_thread(self.cluster.nodes)
        places, alive = made.engines[index], {node.id for node in nodes}
        if all(place.node.id in alive for place in places):
            return True
        if places[0].rank is not None:
            return False
        self.leave(index)
        return await self._place_engine(index)

    async def _place_engine(self, index: int) -> bool:
        """Reserves room among what is free now; False where there is none."""
        nodes = await asyncio.to_thread(self.cluster.nodes)
        if not self.spans_nodes:  # what listens on loopback cannot be reached from elsewhere
            nodes = [node for node in nodes if node.is_driver]
        found = plan_engine(nodes, self._engine_devices, self._wanted.num_gpus_per_node)
        if found is None:
            return False
        try:
            self._engine_groups[index] = await asyncio.to_thread(
                self._group, found, [place.devices for place in found]
            )
        except ClusterError as error:  # of a node that has just gone, or another took them
            raise NoRoomError(f"engine {index}: {error}") from error
        self._note_engine(index, found)
        return True

    def _note_engine(self, index: int, places: tuple[Place, ...]) -> None:
        engines = [*self.plan.engines, *[()] * (index + 1 - len(self.plan.engines))]
        engines[index] = places
        self._plan = replace(self.plan, engines=tuple(engines))

    def leave(self, index: int) -> None:
        """Returns an engine's room to the cluster."""
        from ray.util.placement_group import remove_placement_group

        group = self._engine_groups.pop(index, None)
        if group is not None:
            self._note_engine(index, ())
            with contextlib.suppress(Exception):  # the cluster is going, and takes it along
                remove_placement_group(group)

    async def gpus_of(self, place: Place) -> list[str]:
        """The learner's devices at a place that an engine shares, when its ranks have them."""
        assert self._gpus is not None and place.rank is not None
        gpus = await asyncio.shield(self._gpus)
        return gpus[place.rank : place.rank + place.devices]

    def _options(self, group: Any, bundle: int, devices: float) -> dict[str, Any]:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        resources = self._resources(devices)
        return {
            "num_cpus": resources["CPU"],
            "num_gpus": resources.get("GPU", 0),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=bundle
            ),
        }


def actor_environment(keep: Mapping[str, str]) -> dict[str, str]:
    """The environment of an actor of ours: the product's code is found where it is on the
    driver's node, and what the driver's shell says of NCCL holds everywhere."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **forwarded(os.environ),
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        "PYTHONWARNINGS": "ignore",
        **keep,
    }


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface that has this address: gloo is told that."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family == socket.AF_INET and a.address == address for a in addresses):
            return name
    return None


def whereabouts() -> Where:
    """Of the actor that asks."""
    import ray

    context = ray.get_runtime_context()
    return Where(
        pid=os.getpid(),
        node=context.get_node_id(),
        address=ray.util.get_node_ip_address(),
        gpus=tuple(context.get_accelerator_ids().get("GPU", [])),
    )
