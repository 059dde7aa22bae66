"""The replay buffer: where finished groups wait for the learner, and where generators wait for
room.

`Decisions` decides what happens; this class adds what a pure object must not have: waiting, bytes
and files. It lives on one event loop, so nothing changes between a check and what follows it
without an await. The journal is written first: a line, then everything that follows from it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from buffers.encoded import encode_group
from buffers.files import BufferFiles, open_files, rewind_files
from buffers.journal import ProgressLines
from buffers.ledger import Ledger
from buffers.policy import make_decisions
from buffers.priority import Priority, reward_std
from buffers.staleness import StalenessCheck
from buffers.statistics import BufferCounts, BufferStatistics
from buffers.userfilter import UserFilter
from configs.schema import AsyncConfig
from pipeline.core.encoded_group import EncodedGroup
from pipeline.core.errors import ReplayBufferError, RewoundError
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import Admission, Group
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.deadlines import Wait
from pipeline.schedule.decisions import Choice
from pipeline.schedule.selectors import Pick

BUFFER_FILTER = "buffer_filter"  # the reason of groups that --buffer-filter-path removed
OUTDATED = "outdated: generated before it was admitted"  # ... and of those too stale on arrival


class ReplayBuffer:
    """The way of a group: admit -> put or discard -> take. Implements
    `pipeline.core.protocols.Buffer`."""

    def __init__(
        self,
        directory: Path,
        config: AsyncConfig,
        clock: RolloutClock,
        *,
        time: TimeSource | None = None,
        max_segment_bytes: int = 64 << 20,
        ledger: Ledger | None = None,
        restored_from: str | None = None,
        priority: Priority = reward_std,
        user_filter: UserFilter | None = None,
        made_ahead: bool = False,
        seed: int = 0,
    ) -> None:
        """On resume load the clock first: the groups that are outstanding in it count as generating
        here, and must be recalled, put or discarded.

        `ledger`: made from the journal that an earlier process left in `directory`; without it
        everything that lies there is removed. `restored_from`: the checkpoint's name. `priority`:
        rates a group for the selector `prioritized`. `made_ahead`: groups may have been generated
        before they were admitted; those staler than the bound are given back, where they would
        otherwise be an error. `seed`: of the random selectors. Raises ReplayBufferError when the
        directory cannot be written."""
        self._clock, self._config, self._seed = clock, config, seed
        self._max_bytes, self._priority = config.buffer_max_bytes, priority
        self._user_filter, self._made_ahead = user_filter, made_ahead
        self._counts_lengths = made_ahead or config.stale_policy != "wait"
        self._num_rewinds = 0
        self._staleness = StalenessCheck(clock)
        self._use(
            open_files(
                directory,
                config,
                clock,
                max_segment_bytes=max_segment_bytes,
                ledger=ledger,
                restored_from=restored_from,
            )
        )
        self._taking: int | None = None  # the rollout that `take` waits for
        self._settling = 0  # how many wait until all that is admitted is complete
        self._reading: frozenset[int] = frozenset()
        self._closed = False
        self._window, self._room, self._arrival = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._counts = BufferCounts(time or MonotonicTime())
        clock.subscribe(self._clock_moved)

    def _use(self, files: BufferFiles) -> None:
        """Goes on from what is in the files, and where the clock is."""
        self._files = files
        self._journal, self._stored, self._recovery = files.journal, files.stored, files.recovery
        self._commit = files.commit
        self._decisions = make_decisions(
            self._config, self._clock, seed=self._seed, replayable=files.replayable
        )
        self._progress = ProgressLines(files.journal, self._clock)

    def rewind(self, restored_from: str | None) -> None:
        """The run goes back to a checkpoint, or (None) to its beginning, and does not end: load
        the clock first, and let nothing happen in between. Afterwards it is as after a restart
        (see `ledger`), but that a group may still be under way: whoever makes it says so to
        `recall`."""
        self._check_open()
        self._num_rewinds += 1
        self._staleness.rewound()
        self._use(rewind_files(self._files, self._config, self._clock, restored_from))
        for event in (self._window, self._room, self._arrival):
            _pulse(event)

    # -- the generating side

    def try_admit(self) -> Admission | None:
        """An admission, if one is free now. Groups must be admitted through the buffer, not
        straight through the clock."""
        self._check_open()
        if not self._decisions.may_admit():
            return None
        a = self._decisions.admit(self._recovery.prompt_of(self._clock.num_admitted))
        line = {"g": a.group_index, "d": a.deadline, "v": a.policy_version, "i": a.prompt_index}
        self._journal.append({"t": "admit", **line})
        return a

    async def admit(self) -> Admission:
        """The next admission. Waits while K + 1 rollouts are under way, and also once the run has
        enough groups: a group given back makes room again, so only cancelling ends that wait."""
        if (admission := self.try_admit()) is None:
            with self._counts.waiting("admit"):
                while (admission := self.try_admit()) is None:
                    await self._window.wait()
        return admission

    def recall(
        self, group_index: int, *, under_way: bool = False
    ) -> Literal["complete", "discarded"] | None:
        """Call this for every admission before generating. A group that was complete or given back
        before a crash is so again after this call; None means that it must be generated, or is
        (`under_way`) since before a rewind, whose lost versions count in its staleness."""
        self._check_open()
        account = self._recovery.pop(group_index)
        if account is None:
            if under_way:
                self._staleness.excuse(group_index)
            return None
        if account.discarded is not None:
            self._give_back(group_index, account.discarded, retry=account.retried)
            return "discarded"
        assert account.place is not None
        self._staleness.excuse(group_index)
        self._stored.place(group_index, account.place)
        self._become_ready(group_index, account.priority, account.oldest_version)
        return "complete"

    async def put(self, group: Group) -> None:
        """Stores a complete group; see `put_encoded`."""
        self._check_expected(group)
        await self.put_encoded(encode_group(group, self._priority))

    async def put_encoded(self, group: EncodedGroup) -> None:
        """Store a complete group. Waits while the byte budget is spent, unless the learner waits
        for this very group. With --stale-policy drop or retry a group whose deadline is past is
        removed instead, and counted.

        What a returned `put` promises is `--buffer-durability`: `memory`, nothing after this
        process; `process`, the group survives the death of any process at any instant (kill -9),
        not that of the machine; `fsync`, power loss too (one fsync serves all that wait for one).
        Raises ReplayBufferError when the group was never admitted, or cannot be written;
        RewoundError when it was not written yet as the run went back. One that was then is
        recalled."""
        self._check_expected(group)
        group_index, num_rewinds = group.group_index, self._num_rewinds
        await self._wait_for_room(group)
        if self._decisions.is_late(group_index):
            self._remove_late(group_index, group.response_lengths)
            return
        at = self._stored.append(group.message)
        priority, oldest = group.priority, group.oldest_version
        place = {"s": at.segment, "o": at.offset, "n": at.num_bytes}
        self._journal.append({"t": "put", "g": group_index, **place, "p": priority, "w": oldest})
        if self._commit is not None:
            await self._commit()
            if num_rewinds != self._num_rewinds:
                return
            self._check_expected(group)
        self._stored.place(group_index, at)
        self._become_ready(group_index, priority, oldest)

    def discard(self, group_index: int, reason: str) -> None:
        """The group failed for good, or a filter removed it (before or after its put): its slot
        becomes a new admission."""
        self._check_open()
        assert group_index not in self._reading, (
            f"group {group_index} is being taken: too late to discard it"
        )
        if group_index not in self._decisions:
            raise ReplayBufferError(
                f"group {group_index} is not outstanding: it cannot be discarded ({reason})"
            )
        self._journal.append({"t": "discard", "g": group_index, "why": reason})
        self._give_back(group_index, reason)

    # -- the learner's side

    async def take(self, rollout_id: int) -> list[Group]:
        """The groups of this rollout: P fresh ones in the selector's order, then those that are
        replayed. Waits only for groups whose deadline demands it, and for P groups to be there.
        Their arrays are read-only numpy views of the segment files (see
        `buffers.decoding`). Raises BufferCorruption for a damaged group, ReplayBufferError
        for one staler than the bound."""
        choice = await self._chosen(rollout_id)
        at = self._journal.num_entries  # what the choice was made from
        groups = await self._read([*choice.fresh_indices, *choice.again_indices])
        staleness = self._staleness.check(groups, rollout_id)
        taken = {"g": choice.fresh_indices, "x": choice.again_indices, "at": at}
        version = self._clock.version_at(rollout_id)
        self._journal.append(
            {"t": "consume", "r": rollout_id, "v": version, **taken, **_chances(choice.picks)}
        )
        marked = [self._marked(g, pick) for g, pick in zip(groups, choice.picks, strict=True)]
        self._consume(rollout_id, choice, marked[: len(choice.fresh)])
        self._staleness.consumed(groups, staleness)
        self._remove_late_ones()
        return marked

    async def settled(self) -> None:
        """Waits until all that may be admitted is admitted and complete. Groups find room
        meanwhile, whatever the byte budget: the learner waits for every one of them."""
        self._settling += 1
        try:
            _pulse(self._room)
            while not self._decisions.settled:
                await self._arrival.wait()
                self._check_open()
        finally:
            self._settling -= 1

    def pushing(self, policy_version: int) -> None:
        """The engines are about to be given this version: its number counts as used from now on."""
        self._journal.append({"t": "push", "v": policy_version})

    def committed(self, num_trained: int, checkpoint: str) -> None:
        """A complete checkpoint covers this many rollouts: their groups are never needed again."""
        self._journal.append({"t": "commit", "r": num_trained, "name": checkpoint})
        self._journal.flush()
        self._stored.committed(num_trained)

    # -- both

    def statistics(self) -> BufferStatistics:
        return self._counts.statistics(
            self._decisions,
            num_bytes=self._stored.num_bytes,
            num_segments=self._stored.store.num_segments,
            staleness_max=self._staleness.highest,
        )

    def close(self) -> None:
        """Whoever waits gets a ReplayBufferError. Groups that were not taken stay on disk. It may
        be called more than once."""
        self._closed = True
        for event in (self._window, self._room, self._arrival):
            _pulse(event)
        self._stored.store.close()
        self._journal.close()

    # -- what a rollout takes

    async def _chosen(self, rollout_id: int) -> Choice:
        assert self._taking is None, (
            f"rollout {rollout_id} taken while rollout {self._taking} is: one learner takes, in"
            " order"
        )
        self._check_open()
        wanted: dict[int, int] | None = None
        while True:
            choice = await self._choice(rollout_id, wanted)
            if self._user_filter is None or wanted is not None:
                return choice
            wanted = await self._asked(self._user_filter, rollout_id)

    async def _choice(self, rollout_id: int, wanted: Mapping[int, int] | None) -> Choice:
        """What the rollout takes. Waits until that can be chosen."""
        if isinstance(choice := self._choose(rollout_id, wanted), Choice):
            return choice
        self._taking = rollout_id
        try:
            with self._counts.waiting("take"):
                while isinstance(choice := self._choose(rollout_id, wanted), Wait):
                    _pulse(self._room)  # what is waited for may itself wait at the byte budget
                    await self._arrival.wait()
                    self._check_open()
        finally:
            self._taking = None
        return choice

    def _choose(self, rollout_id: int, wanted: Mapping[int, int] | None) -> Choice | Wait:
        if self._made_ahead:
            for group_index in self._decisions.outdated_groups(rollout_id):
                if not self._staleness.is_excused(group_index):
                    self._remove(group_index, self._stored.lengths_of(group_index), OUTDATED)
        return self._decisions.choose(rollout_id, wanted)

    async def _asked(self, user_filter: UserFilter, rollout_id: int) -> dict[int, int] | None:
        """Which groups --buffer-filter-path wants, each with its rank. Groups that it removed are
        given back."""
        groups = await self._read(self._decisions.ready_groups(rollout_id))
        choice = user_filter(rollout_id, groups, self._clock.batch_size)
        for group in groups:
            if group.group_index in choice.removed:
                self._counts.num_samples_filtered += len(group.samples)
                self.discard(group.group_index, BUFFER_FILTER)
        if choice.removed:
            return None  # asked again, about what is there then
        return {group_index: rank for rank, group_index in enumerate(choice.wanted)}

    async def _read(self, chosen: Sequence[int]) -> list[Group]:
        """The groups from disk. None of them may be discarded meanwhile."""
        self._reading = frozenset(chosen)
        try:
            return await self._stored.read(chosen)
        finally:
            self._reading = frozenset()

    def _marked(self, group: Group, pick: Pick) -> Group:
        index = group.group_index
        return replace(
            group,
            probability=pick.probability,
            times_sampled=self._decisions.times_sampled(index) + 1,
            recalled=self._staleness.is_excused(index),
        )

    def _consume(self, rollout_id: int, choice: Choice, fresh: Sequence[Group]) -> None:
        """Does everything that follows from the journal's line."""
        done = self._decisions.consume(rollout_id, choice.fresh_indices, choice.again_indices)
        for group_index in choice.fresh_indices:
            self._stored.taken(group_index)
        self._stored.done(rollout_id, done)
        _pulse(self._room)
        self._counts.num_taken += len(choice.fresh)
        self._counts.num_replayed += len(choice.again)
        if self._counts_lengths:
            self._counts.trained_lengths.update(s.response_length for g in fresh for s in g.samples)

    # -- what becomes of a group

    def _become_ready(self, group_index: int, priority: float, oldest: int | None) -> None:
        self._counts.num_put += 1
        self._decisions.ready(group_index, priority=priority, oldest_version=oldest)
        self._remove_late_ones()
        _pulse(self._arrival)

    def _remove_late_ones(self) -> None:
        """Removes the ready groups that no rollout may take any more (--stale-policy drop,
        retry)."""
        for group_index in self._decisions.late_groups():
            self._remove_late(group_index, self._stored.lengths_of(group_index))

    def _remove_late(self, group_index: int, lengths: Sequence[int]) -> None:
        d = self._decisions
        self._remove(group_index, lengths, d.late_reason, retry=d.retries_late)

    def _remove(
        self, group_index: int, lengths: Sequence[int], reason: str, *, retry: bool = False
    ) -> None:
        """Removes a complete group and counts how long its responses are (`removed_lengths`): what
        is removed is known as well as what is trained on."""
        self._counts.removed_lengths.update(lengths)
        line = {"g": group_index, "why": reason, "again": retry}
        self._journal.append({"t": "discard", **line})
        self._give_back(group_index, reason, retry=retry)

    def _give_back(self, group_index: int, reason: str, *, retry: bool = False) -> None:
        if self._stored.discard(group_index):
            _pulse(self._room)
        self._decisions.discard(group_index, reason, retry=retry)
        _pulse(self._arrival)  # the learner may have waited for it

    def _clock_moved(self) -> None:
        """Tells the journal, then wakes whoever waits to be admitted."""
        if not self._closed:
            self._progress.write()
        _pulse(self._window)

    # -- checks and waits

    def _check_open(self) -> None:
        if self._closed:
            raise ReplayBufferError("the replay buffer is closed")

    def _check_expected(self, group: Group | EncodedGroup) -> None:
        self._check_open()
        index = group.group_index
        if index not in self._decisions or self._decisions.is_ready(index):
            raise ReplayBufferError(
                f"group {index} is put, but is not generating: it was never admitted, or is put or"
                " discarded already"
            )
        expected = self._decisions.deadline_of(index)
        assert group.deadline == expected, (
            f"group {index} carries deadline {group.deadline}, was admitted with {expected}"
        )

    async def _wait_for_room(self, group: EncodedGroup) -> None:
        if self._has_room(group):
            return
        self._counts.num_limited += 1
        num_rewinds = self._num_rewinds
        try:
            with self._counts.waiting("put"):
                while not self._has_room(group):
                    await self._room.wait()
                    if num_rewinds != self._num_rewinds:
                        raise RewoundError(f"group {group.group_index} was not stored yet")
                    self._check_expected(group)
        finally:
            self._counts.num_limited -= 1

    def _has_room(self, group: EncodedGroup) -> bool:
        stored = self._stored.num_bytes
        if stored == 0 or stored + group.num_bytes <= self._max_bytes or self._settling:
            return True
        if self._taking is None:
            return False
        wait = self._decisions.choose(self._taking)
        return isinstance(wait, Wait) and wait.needs(group.deadline)


def _chances(picks: Sequence[Pick]) -> dict[str, list[float]]:
    """The probabilities of the choice for the journal; nothing where all are 1."""
    chances = [pick.probability for pick in picks]
    return {"pr": chances} if any(p != 1.0 for p in chances) else {}


def _pulse(event: asyncio.Event) -> None:
    """Wakes everyone who waits now; they check again whether they may go on."""
    event.set()
    event.clear()
