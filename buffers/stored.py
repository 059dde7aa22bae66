"""Complete groups on disk: where each lies, how many bytes wait for the learner, and when they may
go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from buffers.decoding import from_batches
from buffers.segments import SegmentStore
from pipeline.core.types import Group, Location

if TYPE_CHECKING:
    from typing_extensions import Buffer

# the event loop breathes after so much verified reading
_READ_SLICE_BYTES, _READ_SLICE_GROUPS = 4 << 20, 64


class StoredGroups:
    """The way of a group: append -> place -> taken -> done with, in a rollout -> freed. A group is
    freed when a checkpoint covers that rollout and the rollout is not one of the last ones, which
    are kept to be looked at."""

    def __init__(self, store: SegmentStore, *, frees_at_once: bool, keep_last: int) -> None:
        """`frees_at_once`: frees groups without waiting for a checkpoint. `keep_last`: how many of
        the last rollouts are kept."""
        self.store, self._frees_at_once, self._keep_last = store, frees_at_once, keep_last
        self._places: dict[int, Location] = {}  # of groups that somebody will read
        self._waiting: set[int] = set()
        # rollout -> where the groups lie that it was the last to need
        self._done: dict[int, list[Location]] = {}
        self._num_rollouts = self._num_committed = 0
        self.num_bytes = 0  # of the groups that wait for the learner

    def restore(
        self,
        num_trained: int,
        replayable: Mapping[int, Location],
        done: Mapping[int, Iterable[Location]],
    ) -> None:
        """After a restart from a checkpoint of so many rollouts: the groups that may be trained on
        again, and, by rollout, those that the last rollouts were done with."""
        self._places.update(replayable)
        self._done = {rollout_id: list(places) for rollout_id, places in done.items()}
        self._num_rollouts = self._num_committed = num_trained
        self._free()

    def append(self, message: Buffer) -> Location:
        return self.store.append(message)

    def place(self, group_index: int, location: Location) -> None:
        """The group waits for the learner from now on."""
        self._places[group_index] = location
        self._waiting.add(group_index)
        self.num_bytes += location.num_bytes

    def taken(self, group_index: int) -> None:
        """The group waits no longer. Its bytes stay: it may be replayed."""
        self._waiting.remove(group_index)
        self.num_bytes -= self._places[group_index].num_bytes

    def discard(self, group_index: int) -> bool:
        """Free the group's bytes, if it waits. Returns whether it did."""
        if group_index not in self._waiting:
            return False
        self.taken(group_index)
        self.store.free(self._places.pop(group_index))
        return True

    def done(self, rollout_id: int, group_indices: Iterable[int]) -> None:
        """After this rollout nobody needs these groups, unless the rollout is lost in a crash."""
        self._done[rollout_id] = [self._places.pop(g) for g in group_indices]
        self._num_rollouts = rollout_id + 1
        self.committed(self._num_rollouts if self._frees_at_once else self._num_committed)

    def committed(self, num_trained: int) -> None:
        """A checkpoint covers so many rollouts."""
        self._num_committed = max(self._num_committed, num_trained)
        self._free()

    def lengths_of(self, group_index: int) -> list[int]:
        """Of its responses, in tokens. Raises BufferCorruption for a damaged group."""
        lengths: list[int] = self.store.read(self._places[group_index])[
            "response_length"
        ].to_pylist()
        return lengths

    async def read(self, group_indices: Sequence[int]) -> list[Group]:
        """Raises BufferCorruption for a damaged group."""
        groups: list[Group] = []
        batches: list[pa.RecordBatch] = []
        num_bytes = 0
        for group_index in group_indices:
            batches.append(self.store.read(self._places[group_index]))
            num_bytes += self._places[group_index].num_bytes
            if num_bytes >= _READ_SLICE_BYTES or len(batches) >= _READ_SLICE_GROUPS:
                groups += from_batches(batches)
                batches, num_bytes = [], 0
                await asyncio.sleep(0)
        return groups + from_batches(batches) if batches else groups

    def _free(self) -> None:
        end = min(self._num_committed, self._num_rollouts - self._keep_last)
        for rollout_id in [r for r in self._done if r < end]:
            for location in self._done.pop(rollout_id):
                self.store.free(location)
