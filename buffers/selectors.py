"""In which order ready groups fill what the deadlines leave free. A selector is a pure sort key; ties keep completion order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from pipeline.errors import ConfigError


class Candidate(NamedTuple):
    """A group that is ready."""

    group_index: int
    deadline: int
    sequence: int  # order of completion


Selector = Callable[[Candidate, int], int]  # (candidate, rollout_id) -> key; the smallest goes first


def deadline(candidate: Candidate, rollout_id: int) -> int:
    """Earliest deadline first."""
    return candidate.deadline


def fifo(candidate: Candidate, rollout_id: int) -> int:
    """First completed, first trained."""
    return candidate.sequence


def lifo(candidate: Candidate, rollout_id: int) -> int:
    """Last completed, first trained: the freshest data."""
    return -candidate.sequence


def uniform(candidate: Candidate, rollout_id: int, *, seed: int) -> int:
    """Uniformly at random, anew for every rollout; a hash rather than a generator's state, so that resuming repeats it."""
    digest = hashlib.blake2b(f"{seed}/{rollout_id}/{candidate.group_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest)


def make_selector(name: str, seed: int = 0) -> Selector:
    """The selector called deadline, fifo, lifo or uniform. Raises ConfigError for any other name."""
    known: dict[str, Selector] = {"deadline": deadline, "fifo": fifo, "lifo": lifo, "uniform": partial(uniform, seed=seed)}
    if name not in known:
        raise ConfigError(f"--buffer-selector {name}: expected one of {', '.join(known)}")
    return known[name]
