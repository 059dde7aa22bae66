"""Which node's devices the learner and every engine take. Pure: it is given what the nodes have.

A device is a GPU; on machines without one it is a logical slot (one of Ray's CPUs). Neighbouring
learner ranks share a node, because tensor-parallel groups are made of neighbours; an engine is on
as few nodes as possible, because every one of its layers ends with a reduction over all of its
devices. Both follow slime's placement groups (slime/ray/placement_group.py)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of the cluster, as a plan sees it."""

    id: str
    address: str
    devices: int  # in all
    free: int
    is_driver: bool = False  # the run's own process is here


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Some devices of one node."""

    node: Node
    devices: int
    first: int  # how many devices of this node the run's places before this one take
    # the learner's rank whose device this place begins with, where an engine shares devices
    rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a run asks for."""

    actor_num_nodes: int
    actor_num_gpus_per_node: int
    engines: tuple[int, ...]  # devices of every engine
    num_gpus_per_node: int | None = None  # devices of a node that may be used; None: all
    colocate: bool = False

    @property
    def devices(self) -> int:
        """How many devices that takes in all."""
        learner, engines = self.actor_num_nodes * self.actor_num_gpus_per_node, sum(self.engines)
        return max(learner, engines) if self.colocate else learner + engines


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`learner`: a place a node, ranks in this order. `engines`: of every engine its places, the
    one that takes requests first."""

    learner: tuple[Place, ...]
    engines: tuple[tuple[Place, ...], ...]
    driver: str = ""  # the id of the node where the run's own process is

    @property
    def shared(self) -> bool:
        """Is an engine on the learner's devices?"""
        return any(place.rank is not None for engine in self.engines for place in engine)

    @property
    def spans_nodes(self) -> bool:
        """Is anything elsewhere than the run's own process?"""
        places = [*self.learner, *(place for engine in self.engines for place in engine)]
        return any(place.node.id != self.driver for place in places)


def plan(nodes: Sequence[Node], wanted: Wanted) -> Plan:
    """Where everything goes. Raises ConfigError, with a table of the nodes, where it cannot."""
    nodes = _in_order(nodes, wanted.num_gpus_per_node)
    driver = next((node.id for node in nodes if node.is_driver), "")
    found = []
    for order in (nodes, sorted(nodes, key=lambda node: node.free)):
        room = _Room(order)
        learner = room.learner(wanted)
        engines = _engines(room, learner, wanted) if learner is not None else None
        if learner is not None and engines is not None:
            found.append(Plan(learner=learner, engines=engines, driver=driver))
    if not found:
        raise ConfigError(_refusal(nodes, wanted))
    return min(found, key=lambda p: sum(map(len, p.engines)))


def plan_learner(nodes: Sequence[Node], wanted: Wanted) -> tuple[Place, ...] | None:
    """Where the learner finds room among what is free now; None where it does not."""
    return _Room(_in_order(nodes, wanted.num_gpus_per_node)).learner(wanted)


def plan_engine(
    nodes: Sequence[Node], devices: int, num_gpus_per_node: int | None = None
) -> tuple[Place, ...] | None:
    """Where one engine finds room among what is free now; None where it does not."""
    return _Room(_in_order(nodes, num_gpus_per_node)).engine(devices)


class _Room:
    """What is left of every node while a plan is made."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = list(nodes)
        self._left = {node.id: node.free for node in nodes}
        self._used = {node.id: node.devices - node.free for node in nodes}

    def learner(self, wanted: Wanted) -> tuple[Place, ...] | None:
        each = wanted.actor_num_gpus_per_node
        fits = [node for node in self._nodes if self._left[node.id] >= each]
        if len(fits) < wanted.actor_num_nodes:
            return None
        return tuple(self._take(node, each) for node in fits[: wanted.actor_num_nodes])

    def engine(self, devices: int) -> tuple[Place, ...] | None:
        """On one node if one has room (the one with the least, so that wider engines find room
        later), else on the fewest that have equal shares of it, which is what SGLang wants."""
        for count in (n for n in range(1, devices + 1) if devices % n == 0):
            share = devices // count
            fits = [node for node in self._nodes if self._left[node.id] >= share]
            if len(fits) >= count:
                tight = sorted(fits, key=lambda node: self._left[node.id])
                return tuple(self._take(node, share) for node in tight[:count])
        return None

    def _take(self, node: Node, devices: int) -> Place:
        place = Place(node=node, devices=devices, first=self._used[node.id])
        self._left[node.id] -= devices
        self._used[node.id] += devices
        return place


def _engines(
    room: _Room, learner: Sequence[Place], wanted: Wanted
) -> tuple[tuple[Place, ...], ...] | None:
    """Under --colocate the first engines take the learner's devices in their order."""
    single = [
        replace(place, devices=1, first=place.first + i)
        for place in learner
        for i in range(place.devices)
    ]
    owned = [replace(place, rank=rank) for rank, place in enumerate(single)]
    out: list[tuple[Place, ...]] = []
    for devices in wanted.engines:
        places: tuple[Place, ...] | None
        if wanted.colocate and len(owned) >= devices:
            places, owned = _joined(owned[:devices]), owned[devices:]
        else:
            places = room.engine(devices)
        if places is None:
            return None
        out.append(places)
    return tuple(out)


def _joined(single: Iterable[Place]) -> tuple[Place, ...]:
    """Neighbouring devices of one node as one place."""
    out: list[Place] = []
    for place in single:
        if out and out[-1].node.id == place.node.id:
            out[-1] = replace(out[-1], devices=out[-1].devices + 1)
        else:
            out.append(place)
    return tuple(out)


def _in_order(nodes: Sequence[Node], most: int | None) -> list[Node]:
    """The run's own node first, then by address; with `most` no more devices of each than that."""

    def key(node: Node) -> tuple[bool, int, str]:
        try:
            number = int(ipaddress.ip_address(node.address))
        except ValueError:  # a name
            number = 0
        return (not node.is_driver, number, node.id)

    out = sorted(nodes, key=key)
    return out if most is None else [replace(n, free=min(n.free, most)) for n in out]


def _refusal(nodes: Sequence[Node], wanted: Wanted) -> str:
    free = sum(node.free for node in nodes)
    width = max([len("node"), *(len(_name(node)) for node in nodes)])
    table = [f"  {'node':<{width}}  devices  free"]
    table += [f"  {_name(n):<{width}}  {n.devices:>7}  {n.free:>4}" for n in nodes]
    learner = f"{wanted.actor_num_nodes} x {wanted.actor_num_gpus_per_node}"
    sizes = " + ".join(map(str, wanted.engines)) or "0"
    if len(wanted.engines) > 3 and len(set(wanted.engines)) == 1:
        sizes = f"{len(wanted.engines)} x {wanted.engines[0]}"
    asked = (
        f"{wanted.devices} devices were asked for: {learner} for the learner (--actor-num-nodes x"
        f" --actor-num-gpus-per-node) {'shared with' if wanted.colocate else 'and'} {sizes} for"
        " the engines (--rollout-num-gpus, --rollout-num-gpus-per-engine)"
    )
    room = f"{free} are free" + (
        f", of at most {wanted.num_gpus_per_node} on a node (--num-gpus-per-node)"
        if wanted.num_gpus_per_node is not None
        else ""
    )
    return "\n".join([f"the run does not fit: {asked}; {room}:", *table, _advice(free, wanted)])


def _advice(free: int, wanted: Wanted) -> str:
    learner = wanted.actor_num_nodes * wanted.actor_num_gpus_per_node
    advice = ["add nodes (`ray start --address ...`)"]
    if free >= wanted.devices:
        advice.append("ask for fewer devices on a node: enough are free, but not side by side")
    if wanted.engines and free > learner:
        advice.append(f"lower --rollout-num-gpus to {free - learner} or less")
    if not wanted.colocate and wanted.engines and learner <= free:
        advice.append("share devices with --colocate")
    return "Choose one: " + "; ".join(advice)


def _name(node: Node) -> str:
    return node.address + (" (this one)" if node.is_driver else "")
