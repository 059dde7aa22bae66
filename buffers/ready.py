"""Complete groups on disk: where each lies, how many bytes wait, when they may go."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from buffers.schema import from_batch
from buffers.segments import SegmentStore
from pipeline.core.types import Group, Location

_READ_SLICE_BYTES = 4 << 20  # the event loop breathes after so much verified reading


@dataclass(frozen=True, slots=True)
class ReadyGroup:
    """A group that waits for the learner."""

    place: Location
    priority: float
    oldest_version: int | None  # of its tokens


class ReadyGroups:
    """append -> place -> release -> done with, in a rollout -> freed when a checkpoint covers
    it."""

    def __init__(self, store: SegmentStore, *, frees_at_once: bool) -> None:
        self.store, self._frees_at_once = store, frees_at_once
        self._waiting: dict[int, ReadyGroup] = {}
        # of groups done with in a rollout that no checkpoint covers yet
        self._uncommitted: dict[int, list[Location]] = {}
        self.num_bytes = 0  # of the groups that wait

    def __contains__(self, group_index: int) -> bool:
        return group_index in self._waiting

    def __getitem__(self, group_index: int) -> ReadyGroup:
        return self._waiting[group_index]

    def append(self, batch: pa.RecordBatch) -> Location:
        return self.store.append(batch)

    def place(self, group_index: int, stored: ReadyGroup) -> None:
        """It waits from now on."""
        self._waiting[group_index] = stored
        self.num_bytes += stored.place.num_bytes

    def release(self, group_index: int) -> ReadyGroup | None:
        """It waits no longer (None: it did not). Its bytes stay until they are freed."""
        stored = self._waiting.pop(group_index, None)
        if stored is not None:
            self.num_bytes -= stored.place.num_bytes
        return stored

    def read_now(self, place: Location) -> Group:
        """Raises BufferCorruption for a damaged group."""
        return from_batch(self.store.read(place))

    async def read(self, places: Sequence[Location]) -> list[Group]:
        groups, since_pause = [], 0
        for place in places:
            groups.append(self.read_now(place))
            since_pause += place.num_bytes
            if since_pause >= _READ_SLICE_BYTES:
                since_pause = 0
                await asyncio.sleep(0)
        return groups

    def done(self, rollout_id: int, places: Iterable[Location]) -> None:
        """After this rollout nobody needs them, unless it is lost in a crash."""
        self._uncommitted.setdefault(rollout_id, []).extend(places)
        if self._frees_at_once:
            self.committed(rollout_id + 1)

    def committed(self, num_trained: int) -> None:
        """A checkpoint covers so many rollouts."""
        for rollout_id in [r for r in self._uncommitted if r < num_trained]:
            for location in self._uncommitted.pop(rollout_id):
                self.store.free(location)

    def sync(self, journal_fd: int) -> Callable[[], None]:
        """What is written until now, and the journal, to the disk: returns the part for a
        thread."""
        descriptors = [
            fd for fd in (self.store.duplicate_descriptor(), os.dup(journal_fd)) if fd is not None
        ]

        def sync() -> None:
            try:
                for fd in descriptors:
                    os.fsync(fd)
            finally:
                for fd in descriptors:
                    os.close(fd)

        return sync
