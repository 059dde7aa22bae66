"""In which order ready groups fill what the deadlines leave free.

A selector is a pure sort key; ties keep completion order.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.core.errors import ConfigError


class Candidate(NamedTuple):
    """A group that is ready."""

    group_index: int
    deadline: int
    sequence: int  # order of completion
    priority: float = 1.0  # not negative


class Pick(NamedTuple):
    """A chosen group, and how likely the choice was among those that could have been chosen at that
    moment (1: not random)."""

    group_index: int
    probability: float


@dataclass(frozen=True, slots=True)
class Selector:
    """`key(candidate, rollout_id)`: the smallest key goes first.

    With `weight` the key is random, and groups are drawn in proportion to their weight."""

    key: Callable[[Candidate, int], float]
    weight: Callable[[Candidate], float] | None = None

    def __call__(self, candidate: Candidate, rollout_id: int) -> float:
        return self.key(candidate, rollout_id)


class Draw:
    """One rollout's choice: candidates are pushed, the best is popped; more candidates may come
    between pops."""

    def __init__(self, selector: Selector, rollout_id: int) -> None:
        self._selector, self._rollout_id = selector, rollout_id
        self._heap: list[tuple[float, int, Candidate]] = []
        self._total = 0.0  # weight of what is in the heap
        # exponential keys know no past: who joins later starts where the draw stands
        self._reached = 0.0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, candidate: Candidate) -> None:
        weight = self._selector.weight
        key = self._selector(candidate, self._rollout_id)
        if weight is not None:
            key += self._reached
            self._total += weight(candidate)
        heapq.heappush(self._heap, (key, candidate.sequence, candidate))

    def pop(self) -> Pick:
        key, _, candidate = heapq.heappop(self._heap)
        weight = self._selector.weight
        if weight is None:
            return Pick(candidate.group_index, 1.0)
        total, mine = self._total, weight(candidate)
        self._reached = key
        self._total = total - mine if self._heap else 0.0
        return Pick(candidate.group_index, min(1.0, mine / total) if self._heap else 1.0)


DEADLINE = Selector(lambda c, _: c.deadline)  # earliest deadline first
ADMISSION = Selector(lambda c, _: c.group_index)  # first admitted, first trained
FIFO = Selector(lambda c, _: c.sequence)  # first completed, first trained
LIFO = Selector(lambda c, _: -c.sequence)  # last completed, first trained: the freshest data


def uniform(seed: int) -> Selector:
    """Uniformly at random, without replacement, anew for every rollout."""
    return _weighted(lambda c: 1.0, seed)


def prioritized(exponent: float, seed: int) -> Selector:
    """At random, without replacement, in proportion to priority^exponent (prioritized experience
    replay, Schaul et al. 2016, arXiv:1511.05952, eq. 1; its epsilon: a group of priority 0 still
    has a chance of 1e-6 to the exponent)."""
    return _weighted(lambda c: max(c.priority, 1e-6) ** exponent, seed)


def _weighted(weight: Callable[[Candidate], float], seed: int) -> Selector:
    """Keys -ln(u) / weight, smallest first: an exponential race, the same as drawing one after the
    other in proportion to weight (Efraimidis and Spirakis 2006, "Weighted random sampling with a
    reservoir"). u is a hash, no generator's state: resuming repeats it."""

    def key(c: Candidate, rollout_id: int) -> float:
        digest = hashlib.blake2b(
            f"{seed}/{rollout_id}/{c.group_index}".encode(), digest_size=8
        ).digest()
        u = (int.from_bytes(digest) + 1) / (2**64 + 1)
        return -math.log(u) / weight(c)

    return Selector(key, weight)


def make_selector(name: str, *, seed: int = 0, exponent: float = 0.6) -> Selector:
    """The selector called deadline, fifo, lifo, uniform or prioritized.

    Raises ConfigError for any other name.
    """
    known: dict[str, Selector] = {
        "deadline": DEADLINE,
        "fifo": FIFO,
        "lifo": LIFO,
        "uniform": uniform(seed),
        "prioritized": prioritized(exponent, seed),
    }
    if name not in known:
        raise ConfigError(f"--buffer-selector {name}: expected one of {', '.join(known)}")
    return known[name]
