"""The replay buffer: where finished groups wait for the learner, and where generators wait for room.

Decisions are the clock's (who may start) and the scheduler's (who is taken); this class adds what they must not have: waiting,
bytes, files. It lives on one event loop, so nothing changes between a check and what follows it without an await.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from buffers.durability import GroupCommit
from buffers.journal import FILE_NAME, Journal
from buffers.ledger import Account, Ledger
from buffers.limiter import Batch, DeadlineScheduler, Wait
from buffers.schema import from_batch, to_batch
from buffers.segments import Location, SegmentStore
from buffers.selectors import Selector, make_selector
from configs.schema import AsyncConfig
from pipeline.clock import Admission, RolloutClock
from pipeline.errors import ReplayBufferError
from pipeline.timing import Clock, MonotonicClock
from pipeline.types import Group

logger = logging.getLogger(__name__)
_READ_SLICE_BYTES = 4 << 20  # the event loop breathes after so much verified reading


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferStatistics:
    """What both sides may want to know. Counts are of groups; seconds are summed over all who waited, since the start."""

    num_generating: int  # admitted, not put yet
    num_ready: int  # put, not taken yet
    num_limited: int  # of the generating: complete, waiting at the byte budget
    num_bytes: int  # on disk and not taken yet
    num_segments: int
    num_put: int
    num_taken: int
    num_discarded: Mapping[str, int]  # by reason
    admit_wait_seconds: float  # the generating side waited for a rollout's release
    put_wait_seconds: float  # the generating side waited at the byte budget
    take_wait_seconds: float  # the learner waited for groups
    staleness_max: int  # of any token consumed so far, in policy versions
    staleness_bound: int


class ReplayBuffer:
    """admit -> put or discard -> take. Implements `pipeline.protocols.Buffer`."""

    def __init__(
        self,
        directory: Path,
        config: AsyncConfig,
        clock: RolloutClock,
        *,
        time: Clock | None = None,
        selector: Selector | None = None,
        max_segment_bytes: int = 64 << 20,
        ledger: Ledger | None = None,
        restored_from: str | None = None,
    ) -> None:
        """On resume load the clock first: what is outstanding in it counts as generating here, and must be recalled, put or discarded.

        `ledger`: of the journal that an earlier process left in `directory`; without it what lies there is removed.
        `restored_from`: the checkpoint's name. Raises ReplayBufferError when the directory cannot be written.
        """
        self._clock, self._time = clock, time or MonotonicClock()
        self._max_bytes = config.buffer_max_bytes
        self._scheduler = DeadlineScheduler(clock.batch_size, selector or make_selector(config.buffer_selector))
        self._stored: dict[int, Location] = {}
        self._uncommitted: dict[int, list[Location]] = {}  # of rollouts consumed, and not covered by a checkpoint yet
        self._frees_at_once = config.buffer_durability == "memory"
        self._recalled: set[int] = set()
        directory.mkdir(parents=True, exist_ok=True)
        if ledger is None:
            (directory / FILE_NAME).unlink(missing_ok=True)
        self._journal = Journal(directory / FILE_NAME, flush_each=config.buffer_durability != "memory")
        self._recall = self._restore(ledger, restored_from) if ledger else {}
        live = [a.place for a in self._recall.values() if a.place is not None]
        self._store = SegmentStore(directory, max_segment_bytes, live=live, keep=config.keep_trajectories)
        self._store.sync_when_sealed = config.buffer_durability == "fsync"
        self._commit_group = GroupCommit(self._sync) if config.buffer_durability == "fsync" else None
        self._forget_what_is_gone()
        self._num_bytes = 0
        self._taking: int | None = None  # the rollout that `take` waits for
        self._reading: frozenset[int] = frozenset()
        self._closed = False
        self._window, self._room, self._arrival = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._waits = {"admit": 0.0, "put": 0.0, "take": 0.0}
        self._num_put = self._num_taken = self._num_limited = self._staleness_max = 0
        for admission in clock.outstanding.values():
            self._scheduler.register(admission.group_index, admission.deadline)
        clock.subscribe(lambda: _pulse(self._window))

    # -- the generating side ------------------------------------------------------------------------------------------

    def try_admit(self) -> Admission | None:
        """An admission, if there is one now. Admissions must go through the buffer, not straight to the clock."""
        self._check_open()
        assert len(self._scheduler) == len(self._clock.outstanding), "clock and buffer disagree on what is outstanding"
        if not self._clock.may_admit():
            return None
        admission = self._clock.admit()
        self._scheduler.register(admission.group_index, admission.deadline)
        self._journal.append({"t": "admit", "g": admission.group_index, "d": admission.deadline, "v": admission.policy_version})
        return admission

    async def admit(self) -> Admission:
        """The next admission. Waits while K + 1 rollouts are under way, and once the run has enough groups (a group given back
        makes room again, so only the end of the run ends this wait: cancel it)."""
        if (admission := self.try_admit()) is None:
            with self._waiting("admit"):
                while (admission := self.try_admit()) is None:
                    await self._window.wait()
        return admission

    def recall(self, group_index: int) -> Literal["complete", "discarded"] | None:
        """Ask for every admission before generating. Before a crash, was this group complete, or given back? Then it is so again,
        here and now. None: generate it."""
        self._check_open()
        account = self._recall.pop(group_index, None)
        if account is None:
            return None
        if account.discarded is not None:
            self._scheduler.remove(group_index)
            self._clock.give_back(group_index, account.discarded)
            _pulse(self._arrival)
            return "discarded"
        assert account.place is not None
        self._recalled.add(group_index)
        self._store_ready(group_index, account.place)
        return "complete"

    async def put(self, group: Group) -> None:
        """Store a complete group. Waits while the byte budget is spent, unless the learner waits for this very group.

        What a returned `put` promises is `--buffer-durability`: `memory`, nothing after this process; `process`, the group survives
        the death of any process at any instant (kill -9), not that of the machine; `fsync`, power loss too (one fsync serves all that
        wait for one). Raises ReplayBufferError when the group was never admitted, or cannot be written."""
        self._check_expected(group)
        batch = to_batch(group)
        num_bytes = batch.get_total_buffer_size()  # nbytes takes fifty times as long, a tenth of a small put
        if not self._has_room(group, num_bytes):
            self._num_limited += 1
            try:
                with self._waiting("put"):
                    while not self._has_room(group, num_bytes):
                        await self._room.wait()
                        self._check_expected(group)
            finally:
                self._num_limited -= 1
        location = self._store.append(batch)
        self._journal.append({"t": "put", "g": group.group_index, "s": location.segment, "o": location.offset, "n": location.num_bytes})
        if self._commit_group is not None:
            await self._commit_group()
            self._check_expected(group)
        self._store_ready(group.group_index, location)

    def discard(self, group_index: int, reason: str) -> None:
        """The group failed for good, or a filter removed it (before or after its put): its slot becomes a new admission."""
        self._check_open()
        assert group_index not in self._reading, f"group {group_index} is being taken: too late to discard it"
        if group_index not in self._scheduler:
            raise ReplayBufferError(f"group {group_index} is not outstanding: it cannot be discarded ({reason})")
        self._journal.append({"t": "discard", "g": group_index, "why": reason})
        self._scheduler.remove(group_index)
        if (location := self._release(group_index)) is not None:
            self._store.free(location)
        self._clock.give_back(group_index, reason)
        _pulse(self._arrival)  # the learner may have waited for it

    # -- the learner's side -------------------------------------------------------------------------------------------

    async def take(self, rollout_id: int) -> list[Group]:
        """The P groups of this rollout, in the selector's order; waits only for groups whose deadline demands it, and for P
        groups to be there. Their arrays are read-only numpy views of the segment files (see `buffers.schema.from_batch`).
        Raises BufferCorruption for a damaged group, ReplayBufferError for one staler than the bound."""
        chosen = await self._chosen(rollout_id)
        self._reading = frozenset(chosen)
        try:
            groups = await self._read(chosen)
            staleness = max((self._checked_staleness(g, rollout_id) for g in groups), default=0)
        finally:
            self._reading = frozenset()
        self._journal.append({"t": "consume", "r": rollout_id, "v": self._clock.version_at(rollout_id), "g": list(chosen)})
        self._clock.consume(rollout_id, chosen)
        places = []
        for group_index in chosen:
            self._scheduler.remove(group_index)
            self._recalled.discard(group_index)
            places.append(self._release(group_index))
        self._uncommitted[rollout_id] = [place for place in places if place is not None]
        if self._frees_at_once:
            self._free_consumed(rollout_id + 1)
        self._num_taken += len(chosen)
        self._staleness_max = max(self._staleness_max, staleness)
        return groups

    def pushing(self, policy_version: int) -> None:
        """The engines are about to be given this version: from now on its number is used."""
        self._journal.append({"t": "push", "v": policy_version})

    def committed(self, num_trained: int, checkpoint: str) -> None:
        """A complete checkpoint covers this many rollouts: their groups are never needed again."""
        self._journal.append({"t": "commit", "r": num_trained, "name": checkpoint})
        self._journal.flush()
        self._free_consumed(num_trained)

    # -- both ---------------------------------------------------------------------------------------------------------

    def outstanding(self) -> list[Admission]:
        """What is admitted and not consumed, oldest first: what a resumed run must put or discard (besides the rollouts that
        are consumed but not trained, which the clock's state adds)."""
        return list(self._clock.outstanding.values())

    def statistics(self) -> BufferStatistics:
        return BufferStatistics(
            num_generating=self._scheduler.num_generating,
            num_ready=self._scheduler.num_ready,
            num_limited=self._num_limited,
            num_bytes=self._num_bytes,
            num_segments=self._store.num_segments,
            num_put=self._num_put,
            num_taken=self._num_taken,
            num_discarded=self._clock.given_back,
            admit_wait_seconds=self._waits["admit"],
            put_wait_seconds=self._waits["put"],
            take_wait_seconds=self._waits["take"],
            staleness_max=self._staleness_max,
            staleness_bound=self._clock.max_staleness,
        )

    def close(self) -> None:
        """Whoever waits gets a ReplayBufferError. Groups not taken stay on disk. Idempotent."""
        self._closed = True
        for event in (self._window, self._room, self._arrival):
            _pulse(event)
        self._store.close()
        self._journal.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _chosen(self, rollout_id: int) -> tuple[int, ...]:
        assert self._taking is None, f"rollout {rollout_id} taken while rollout {self._taking} is: one learner takes, in order"
        self._check_open()
        if isinstance(plan := self._scheduler.plan(rollout_id), Batch):
            return plan.group_indices
        self._taking = rollout_id
        try:
            with self._waiting("take"):
                while not isinstance(plan := self._scheduler.plan(rollout_id), Batch):
                    _pulse(self._room)  # what is waited for may itself wait at the byte budget
                    await self._arrival.wait()
                    self._check_open()
        finally:
            self._taking = None
        return plan.group_indices

    async def _read(self, chosen: tuple[int, ...]) -> list[Group]:
        groups, since_pause = [], 0
        for group_index in chosen:
            location = self._stored[group_index]
            groups.append(from_batch(self._store.read(location)))
            since_pause += location.num_bytes
            if since_pause >= _READ_SLICE_BYTES:
                since_pause = 0
                await asyncio.sleep(0)
        return groups

    def _checked_staleness(self, group: Group, rollout_id: int) -> int:
        """The group's staleness. The bound holds by scheduling; if an engine served older weights than it confirmed, it fails here."""
        worst = 0
        for sample in group.samples:
            if (version := sample.oldest_version()) is None:
                continue
            worst = max(worst, self._clock.staleness(version, rollout_id))
            if worst > self._clock.max_staleness and group.group_index not in self._recalled:
                raise ReplayBufferError(
                    f"group {group.group_index}, sample {sample.index}: tokens of policy version {version} at rollout {rollout_id} are "
                    f"{worst} versions stale, the bound is {self._clock.max_staleness}. The group was admitted at version "
                    f"{group.admitted_version}: an engine (or a custom generate function) used older weights"
                )
        return worst

    def _has_room(self, group: Group, num_bytes: int) -> bool:
        if self._num_bytes == 0 or self._num_bytes + num_bytes <= self._max_bytes:
            return True
        if self._taking is None:
            return False
        plan = self._scheduler.plan(self._taking)
        return isinstance(plan, Wait) and plan.needs(group.deadline)

    def _check_expected(self, group: Group) -> None:
        self._check_open()
        index = group.group_index
        if index not in self._scheduler or self._scheduler.is_ready(index):
            raise ReplayBufferError(f"group {index} is put, but is not generating: it was never admitted, or is put or discarded already")
        expected = self._scheduler.deadline_of(index)
        assert group.deadline == expected, f"group {index} carries deadline {group.deadline}, was admitted with {expected}"

    def _check_open(self) -> None:
        if self._closed:
            raise ReplayBufferError("the replay buffer is closed")

    def _store_ready(self, group_index: int, location: Location) -> None:
        self._stored[group_index] = location
        self._num_bytes += location.num_bytes
        self._num_put += 1
        self._scheduler.ready(group_index)
        _pulse(self._arrival)

    def _release(self, group_index: int) -> Location | None:
        """It waits no longer. Its bytes stay until `_store.free`."""
        location = self._stored.pop(group_index, None)
        if location is not None:
            self._num_bytes -= location.num_bytes
            _pulse(self._room)
        return location

    def _free_consumed(self, num_trained: int) -> None:
        for rollout_id in [r for r in self._uncommitted if r < num_trained]:
            for location in self._uncommitted.pop(rollout_id):
                self._store.free(location)

    def _sync(self) -> Callable[[], None]:
        """What is written until now, to the disk: returns the part for a thread."""
        descriptors = [fd for fd in (self._store.duplicate_descriptor(), os.dup(self._journal.fd)) if fd is not None]

        def sync() -> None:
            try:
                for fd in descriptors:
                    os.fsync(fd)
            finally:
                for fd in descriptors:
                    os.close(fd)

        return sync

    # -- restart ------------------------------------------------------------------------------------------------------

    def _restore(self, ledger: Ledger, name: str | None) -> dict[int, Account]:
        record = {"t": "restore", "r": self._clock.num_trained, "name": name, "v": self._clock.policy_version}
        self._journal.append(record)
        ledger.apply(record)
        return {g: a for g, a in ledger.accounts.items() if not a.consumed and (a.discarded is not None or a.place is not None)}

    def _forget_what_is_gone(self) -> None:
        """Journal lines whose bytes a power loss took (durability `process` does not promise more): generated again."""
        gone = [g for g, a in self._recall.items() if a.discarded is None and a.place and not self._store.holds(a.place)]
        for group_index in gone:
            del self._recall[group_index]
            self._journal.append({"t": "gone", "g": group_index})
        complete = sum(a.discarded is None for a in self._recall.values())
        if complete or gone:
            logger.info("the buffer's journal: %d complete groups are kept, %d are gone and generated again", complete, len(gone))

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        start = self._time.now()
        try:
            yield
        finally:
            self._waits[what] += self._time.now() - start


def _pulse(event: asyncio.Event) -> None:
    """Wake everyone who waits now; they look again whether it was for them."""
    event.set()
    event.clear()
