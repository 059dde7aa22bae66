"""Rollouts as files, to debug generation or training alone: what the learner took is written once
and can be read back any number of times.

A file is a segment (see `buffers.segments`: Arrow IPC, every batch checksummed) with the rollout's
groups in order. Its schema's metadata hold what the buffer knew of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from buffers.decoding import from_batch
from buffers.encoding import to_batch
from buffers.schema import SCHEMA
from buffers.segments import encode, scan
from pipeline.core.errors import DataError
from pipeline.core.types import Group

_KEY = b"rollout"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRollout:
    """The groups of one rollout, and the learner's policy version when it took them."""

    rollout_id: int
    policy_version: int
    groups: tuple[Group, ...]


def path_of(template: str, rollout_id: int) -> Path:
    return Path(template.replace("{rollout_id}", str(rollout_id)))


def write_take(path: Path, take: KeptRollout) -> None:
    said = {
        "rollout_id": take.rollout_id,
        "policy_version": take.policy_version,
        "times_sampled": [g.times_sampled for g in take.groups],
        "probability": [g.probability for g in take.groups],
    }
    schema = SCHEMA.with_metadata({**(SCHEMA.metadata or {}), _KEY: json.dumps(said).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(path.name + ".part")
    with whole.open("wb") as file:
        file.write(schema.serialize().to_pybytes())
        for group in take.groups:
            file.write(encode(to_batch(group)))
    whole.replace(path)


def read_take(path: Path) -> KeptRollout:
    """Reads a file that `write_take` wrote. Raises DataError when there is no such file or it is of
    another kind, BufferCorruption when it is damaged."""
    try:
        with pa.memory_map(str(path)) as mapped:
            said = json.loads((pa.ipc.read_schema(mapped).metadata or {})[_KEY])
    except (OSError, KeyError, pa.ArrowException) as e:
        raise DataError(
            f"{path} cannot be read as a saved rollout ({e}); expected a file of"
            " --save-debug-rollout-data"
        ) from e
    groups = [from_batch(batch) for _, batch in scan(path)]
    marks = zip(groups, said["times_sampled"], said["probability"], strict=True)
    marked = tuple(replace(group, times_sampled=times, probability=p) for group, times, p in marks)
    return KeptRollout(
        rollout_id=said["rollout_id"], policy_version=said["policy_version"], groups=marked
    )


class KeptRun:
    """The rollouts of a run that kept its trajectories (--keep-trajectories), from its journal and
    segments."""

    def __init__(self, folder: Path) -> None:
        """`folder`: the buffer's folder in a run directory."""
        from buffers.journal import FILE_NAME, read_journal
        from buffers.ledger import Ledger

        self._folder = folder
        self._ledger = Ledger(read_journal(folder / FILE_NAME)[0])

    def __len__(self) -> int:
        """How many rollouts were taken; those lost in crashes are not counted."""
        return len(self._ledger.takes)

    def read(self, rollout_id: int) -> KeptRollout:
        """The groups of this rollout. Raises DataError when one of them is gone, BufferCorruption
        when one is damaged."""
        taken = self._ledger.takes.get(rollout_id)
        if taken is None:
            raise DataError(f"{self._folder} has no rollout {rollout_id}: it took {len(self)}")
        return KeptRollout(
            rollout_id=rollout_id,
            policy_version=taken.policy_version,
            groups=tuple(
                self._group(g, rollout_id, p)
                for g, p in zip(taken.groups, taken.probabilities, strict=True)
            ),
        )

    def _group(self, group_index: int, rollout_id: int, probability: float) -> Group:
        account = self._ledger.accounts[group_index]
        assert account.place is not None
        path = self._folder / f"segment-{account.place.segment:06d}.arrow"
        if not path.exists():
            raise DataError(
                f"{path} is gone, with group {group_index} of rollout {rollout_id}: "
                "--keep-trajectories keeps them"
            )
        group = next(from_batch(batch) for offset, batch in scan(path, account.place.offset))
        times = 1 + sum(r < rollout_id for r, _ in (*account.consumed, *account.replayed))
        return replace(group, times_sampled=times, probability=probability)
