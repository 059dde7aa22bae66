"""The replay buffer: where finished groups wait for the learner, and where generators wait for
room.

Decisions are the clock's (who may start) and the scheduler's (who is taken); this class adds what
they must not have: waiting, bytes, files. It lives on one event loop, so nothing changes between a
check and what follows it without an await."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from buffers.durability import GroupCommit
from buffers.journal import FILE_NAME, Journal
from buffers.ledger import Ledger
from buffers.priority import Priority, reward_std
from buffers.ready import ReadyGroup, ReadyGroups
from buffers.recovery import Recovery
from buffers.schema import to_batch
from buffers.segments import SegmentStore
from buffers.statistics import BufferStatistics
from buffers.userfilter import UserFilter
from configs.schema import AsyncConfig
from pipeline.core.errors import ReplayBufferError
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import Admission, Group
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.deadlines import Batch, DeadlineScheduler, Wait
from pipeline.schedule.replay_pool import Entry, ReplayPool
from pipeline.schedule.selectors import Pick, make_selector

logger = logging.getLogger(__name__)
BUFFER_FILTER = "buffer_filter"  # the reason of groups that --buffer-filter-path removed


class ReplayBuffer:
    """admit -> put or discard -> take. Implements `pipeline.core.protocols.Buffer`."""

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
        seed: int = 0,
    ) -> None:
        """On resume load the clock first: what is outstanding in it counts as generating here, and
        must be recalled, put or discarded.

        `ledger`: of the journal that an earlier process left in `directory`; without it what lies
        there is removed. `restored_from`: the checkpoint's name. `priority`: of a group, for the
        selector `prioritized`; `seed`: of the random selectors. Raises ReplayBufferError when the
        directory cannot be written."""
        self._clock, self._time = clock, time or MonotonicTime()
        self._max_bytes = config.buffer_max_bytes
        selector = make_selector(
            config.buffer_selector, seed=seed, exponent=config.buffer_priority_exponent
        )
        self._stale_policy, self._priority, self._user_filter = (
            config.stale_policy,
            priority,
            user_filter,
        )
        self._scheduler = DeadlineScheduler(
            clock.batch_size, selector, waits=config.stale_policy == "wait"
        )
        self._pool = ReplayPool(
            selector=selector,
            max_times_sampled=config.max_times_sampled,
            max_staleness=clock.max_staleness,
        )
        self._recalled: set[int] = set()
        directory.mkdir(parents=True, exist_ok=True)
        if ledger is None:
            (directory / FILE_NAME).unlink(missing_ok=True)
        num_records = ledger.num_records if ledger else 0
        flush_each = config.buffer_durability != "memory"
        self._journal = Journal(
            directory / FILE_NAME, flush_each=flush_each, num_records=num_records
        )
        self._earlier = Recovery(
            ledger, self._journal, clock, restored_from, config.max_times_sampled
        )
        live, first_id = self._earlier.places(), self._earlier.next_segment()
        store = SegmentStore(
            directory,
            max_segment_bytes,
            live=live,
            keep=config.keep_trajectories,
            first_id=first_id,
        )
        store.sync_when_sealed = config.buffer_durability == "fsync"
        self._earlier.forget_what_is_gone(store)
        self._shelf = ReadyGroups(store, frees_at_once=config.buffer_durability == "memory")
        self._commit_group = (
            GroupCommit(lambda: self._shelf.sync(self._journal.fd))
            if store.sync_when_sealed
            else None
        )
        for entry in self._earlier.replayable(store):
            self._pool.add(entry)
        self._taking: int | None = None  # the rollout that `take` waits for
        self._reading: frozenset[int] = frozenset()
        self._closed = False
        self._window, self._room, self._arrival = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._waits = {"admit": 0.0, "put": 0.0, "take": 0.0}
        self._num_put = self._num_taken = self._num_replayed = self._num_limited = (
            self._staleness_max
        ) = 0
        self._trained_lengths, self._removed_lengths = Counter[int](), Counter[int]()
        for admission in clock.outstanding.values():
            self._scheduler.register(admission.group_index, admission.deadline)
        self._noted = (clock.num_trained, clock.policy_version)  # in the journal
        clock.subscribe(self._clock_moved)

    # -- the generating side -----------------------------------------------------------------------

    def try_admit(self) -> Admission | None:
        """An admission, if there is one now.

        Admissions must go through the buffer, not straight to the clock.
        """
        self._check_open()
        assert len(self._scheduler) == len(self._clock.outstanding), (
            "clock and buffer disagree on what is outstanding"
        )
        if not self._clock.may_admit():
            return None
        admission = self._clock.admit(self._earlier.prompt_of(self._clock.num_admitted))
        a, index = admission, admission.group_index
        self._scheduler.register(index, a.deadline)
        self._journal.append(
            {"t": "admit", "g": index, "d": a.deadline, "v": a.policy_version, "i": a.prompt_index}
        )
        return admission

    async def admit(self) -> Admission:
        """The next admission. Waits while K + 1 rollouts are under way, and once the run has enough
        groups (a group given back makes room again, so only the end of the run ends this wait:
        cancel it)."""
        if (admission := self.try_admit()) is None:
            with self._waiting("admit"):
                while (admission := self.try_admit()) is None:
                    await self._window.wait()
        return admission

    def recall(self, group_index: int) -> Literal["complete", "discarded"] | None:
        """Ask for every admission before generating. Before a crash, was this group complete, or
        given back? Then it is so again, here and now. None: generate it."""
        self._check_open()
        account = self._earlier.pop(group_index)
        if account is None:
            return None
        if account.discarded is not None:
            self._give_back(group_index, account.discarded, retry=account.retried)
            return "discarded"
        assert account.place is not None
        self._recalled.add(group_index)
        self._store_ready(
            group_index, ReadyGroup(account.place, account.priority, account.oldest_version)
        )
        return "complete"

    async def put(self, group: Group) -> None:
        """Store a complete group. Waits while the byte budget is spent, unless the learner waits
        for this very group. With --stale-policy drop or retry a group whose deadline is past is
        removed instead, and counted.

        What a returned `put` promises is `--buffer-durability`: `memory`, nothing after this
        process; `process`, the group survives the death of any process at any instant (kill -9),
        not that of the machine; `fsync`, power loss too (one fsync serves all that wait for one).
        Raises ReplayBufferError when the group was never admitted, or cannot be written."""
        self._check_expected(group)
        batch = to_batch(group)
        # nbytes takes fifty times as long, a tenth of a small put
        num_bytes = batch.get_total_buffer_size()
        if not self._has_room(group, num_bytes):
            self._num_limited += 1
            try:
                with self._waiting("put"):
                    while not self._has_room(group, num_bytes):
                        await self._room.wait()
                        self._check_expected(group)
            finally:
                self._num_limited -= 1
        if self._clock.num_consumed > group.deadline:
            self._remove_stale(group)
            return
        location = self._shelf.append(batch)
        stored = ReadyGroup(location, self._priority(group), _oldest_version(group))
        place = {"s": location.segment, "o": location.offset, "n": location.num_bytes}
        self._journal.append(
            {
                "t": "put",
                "g": group.group_index,
                **place,
                "p": stored.priority,
                "w": stored.oldest_version,
            }
        )
        if self._commit_group is not None:
            await self._commit_group()
            self._check_expected(group)
        self._store_ready(group.group_index, stored)

    def discard(self, group_index: int, reason: str) -> None:
        """The group failed for good, or a filter removed it (before or after its put): its slot
        becomes a new admission."""
        self._check_open()
        assert group_index not in self._reading, (
            f"group {group_index} is being taken: too late to discard it"
        )
        if group_index not in self._scheduler:
            raise ReplayBufferError(
                f"group {group_index} is not outstanding: it cannot be discarded ({reason})"
            )
        self._journal.append({"t": "discard", "g": group_index, "why": reason})
        self._give_back(group_index, reason)

    # -- the learner's side ------------------------------------------------------------------------

    async def take(self, rollout_id: int) -> list[Group]:
        """The groups of this rollout: P fresh ones in the selector's order, then those that are
        replayed. Waits only for groups whose deadline demands it, and for P groups to be there.
        Their arrays are read-only numpy views of the segment files (see
        `buffers.schema.from_batch`). Raises BufferCorruption for a damaged group, ReplayBufferError
        for one staler than the bound."""
        fresh, at = await self._chosen(rollout_id)
        version = self._clock.version_at(rollout_id)
        retired = self._pool.expire(version)
        again = self._pool.choose(rollout_id, self._clock.limiter.batch - len(fresh))
        groups = await self._holding([p.group_index for p in (*fresh, *again)])
        staleness = max((self._checked_staleness(g, rollout_id) for g in groups), default=0)
        self._journal.append(
            {
                "t": "consume",
                "r": rollout_id,
                "v": version,
                "g": [p.group_index for p in fresh],
                "x": [p.group_index for p in again],
                "at": at,
                **_probabilities((*fresh, *again)),
            }
        )
        taken = [
            replace(
                group,
                probability=pick.probability,
                times_sampled=self._times_sampled(group.group_index) + 1,
            )
            for group, pick in zip(groups, (*fresh, *again), strict=True)
        ]
        self._consume(rollout_id, taken[: len(fresh)], again, retired)
        self._staleness_max = max(self._staleness_max, staleness)
        self._remove_past(rollout_id + 1)
        return taken

    def pushing(self, policy_version: int) -> None:
        """The engines are about to be given this version: from now on its number is used."""
        self._journal.append({"t": "push", "v": policy_version})

    def committed(self, num_trained: int, checkpoint: str) -> None:
        """A complete checkpoint covers this many rollouts: their groups are never needed again."""
        self._journal.append({"t": "commit", "r": num_trained, "name": checkpoint})
        self._journal.flush()
        self._shelf.committed(num_trained)

    # -- both --------------------------------------------------------------------------------------

    def outstanding(self) -> list[Admission]:
        """What is admitted and not consumed, oldest first: what a resumed run must put or discard
        (besides the rollouts that are consumed but not trained, which the clock's state adds)."""
        return list(self._clock.outstanding.values())

    def statistics(self) -> BufferStatistics:
        return BufferStatistics(
            num_generating=self._scheduler.num_generating,
            num_ready=self._scheduler.num_ready,
            num_replayable=len(self._pool),
            num_limited=self._num_limited,
            num_bytes=self._shelf.num_bytes,
            num_segments=self._shelf.store.num_segments,
            num_put=self._num_put,
            num_taken=self._num_taken,
            num_replayed=self._num_replayed,
            num_discarded=self._clock.given_back,
            trained_lengths=self._trained_lengths,
            removed_lengths=self._removed_lengths,
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
        self._shelf.store.close()
        self._journal.close()

    # -- inside ------------------------------------------------------------------------------------

    async def _chosen(self, rollout_id: int) -> tuple[tuple[Pick, ...], int]:
        """(the fresh groups of this rollout, the journal's records when they were chosen)."""
        assert self._taking is None, (
            f"rollout {rollout_id} taken while rollout {self._taking} is: one learner takes, in"
            " order"
        )
        self._check_open()
        wanted: dict[int, int] | None = None
        while True:
            plan = await self._planned(rollout_id, wanted)
            if self._user_filter is None or wanted is not None:
                return plan.picks, self._journal.num_records
            wanted = await self._asked(self._user_filter, rollout_id)

    async def _planned(self, rollout_id: int, wanted: Mapping[int, int] | None) -> Batch:
        if isinstance(plan := self._plan(rollout_id, wanted), Batch):
            return plan
        self._taking = rollout_id
        try:
            with self._waiting("take"):
                while not isinstance(plan := self._plan(rollout_id, wanted), Batch):
                    _pulse(self._room)  # what is waited for may itself wait at the byte budget
                    await self._arrival.wait()
                    self._check_open()
        finally:
            self._taking = None
        return plan

    def _plan(self, rollout_id: int, wanted: Mapping[int, int] | None) -> Batch | Wait:
        limiter, size = self._clock.limiter, self._scheduler.num_ready + len(self._pool)
        inserts, samples = (
            rollout_id * self._clock.batch_size + self._scheduler.num_ready,
            rollout_id * limiter.batch,
        )
        # Min size is for the beginning: at the end of a run there may be no more groups than the
        # last rollouts need.
        if rollout_id == 0 and not limiter.can_sample(inserts=inserts, samples=samples, size=size):
            return Wait(num_missing=limiter.min_size_to_sample - size, deadline=None)
        return self._scheduler.plan(rollout_id, wanted)

    async def _asked(self, user_filter: UserFilter, rollout_id: int) -> dict[int, int] | None:
        """What --buffer-filter-path wants, by rank. What it removed is given back."""
        groups = await self._holding(self._scheduler.ready_groups(rollout_id))
        choice = user_filter(rollout_id, groups, self._clock.batch_size)
        for group_index in choice.removed:
            self.discard(group_index, BUFFER_FILTER)
        if choice.removed:
            return None  # asked again, about what is there then
        return {group_index: rank for rank, group_index in enumerate(choice.wanted)}

    async def _holding(self, chosen: Sequence[int]) -> list[Group]:
        """Read these; none of them may be discarded meanwhile."""
        self._reading = frozenset(chosen)
        try:
            return await self._shelf.read(
                [self._shelf[g].place if g in self._shelf else self._pool[g].place for g in chosen]
            )
        finally:
            self._reading = frozenset()

    def _clock_moved(self) -> None:
        """For the journal, from which every admission can be derived again; then whoever waits to
        be admitted looks."""
        if not self._closed:
            for rollout_id in range(self._noted[0], self._clock.num_trained):
                self._journal.append({"t": "trained", "r": rollout_id})
            for version in range(self._noted[1] + 1, self._clock.policy_version + 1):
                self._journal.append({"t": "pushed", "v": version})
            self._noted = (self._clock.num_trained, self._clock.policy_version)
        _pulse(self._window)

    def _times_sampled(self, group_index: int) -> int:
        return 0 if group_index in self._shelf else self._pool[group_index].times_sampled

    def _consume(
        self, rollout_id: int, fresh: Sequence[Group], again: Sequence[Pick], retired: list[Entry]
    ) -> None:
        """Everything that follows from the journal's line.

        The groups in `fresh` leave the ready ones, for the pool or for good.
        """
        self._clock.consume(rollout_id, [g.group_index for g in fresh])
        done = [
            entry.place for entry in (*retired, *self._pool.sampled(p.group_index for p in again))
        ]
        for group in fresh:
            candidate = self._scheduler.candidate(group.group_index)
            self._scheduler.remove(group.group_index)
            self._recalled.discard(group.group_index)
            if (stored := self._release(group.group_index)) is None:
                continue
            oldest = (
                group.admitted_version if stored.oldest_version is None else stored.oldest_version
            )
            if not self._pool.add(
                Entry(
                    candidate=candidate, place=stored.place, oldest_version=oldest, times_sampled=1
                )
            ):
                done.append(stored.place)
            if self._stale_policy != "wait":
                self._trained_lengths.update(s.response_length for s in group.samples)
        self._shelf.done(rollout_id, done)
        self._num_taken += len(fresh)
        self._num_replayed += len(again)

    # -- groups that missed their deadline (--stale-policy drop, retry) ----------------------------

    def _remove_past(self, rollout_id: int) -> None:
        """Ready groups that no rollout from this one on may take."""
        for group_index in self._scheduler.past(rollout_id):
            self._remove_stale(self._shelf.read_now(self._shelf[group_index].place))

    def _remove_stale(self, group: Group) -> None:
        """It is complete, so that what is removed is known as well as what is trained:
        `removed_lengths`."""
        retry = self._stale_policy == "retry"
        reason = "stale: retried" if retry else "stale: dropped"
        self._removed_lengths.update(s.response_length for s in group.samples)
        self._journal.append(
            {"t": "discard", "g": group.group_index, "why": reason, "again": retry}
        )
        self._give_back(group.group_index, reason, retry=retry)

    def _checked_staleness(self, group: Group, rollout_id: int) -> int:
        """The group's staleness.

        The bound holds by scheduling; if an engine served older weights than it confirmed, it fails
        here.
        """
        worst = 0
        for sample in group.samples:
            if (version := sample.oldest_version()) is None:
                continue
            worst = max(worst, self._clock.staleness(version, rollout_id))
            if worst > self._clock.max_staleness and group.group_index not in self._recalled:
                raise ReplayBufferError(
                    f"group {group.group_index}, sample {sample.index}: tokens of policy version"
                    f" {version} at rollout {rollout_id} are {worst} versions stale, the bound is"
                    f" {self._clock.max_staleness}. The group was admitted at version"
                    f" {group.admitted_version}: an engine (or a custom generate function) used"
                    " older weights"
                )
        return worst

    def _has_room(self, group: Group, num_bytes: int) -> bool:
        if self._shelf.num_bytes == 0 or self._shelf.num_bytes + num_bytes <= self._max_bytes:
            return True
        if self._taking is None:
            return False
        plan = self._plan(self._taking, None)
        return isinstance(plan, Wait) and plan.needs(group.deadline)

    def _check_expected(self, group: Group) -> None:
        self._check_open()
        index = group.group_index
        if index not in self._scheduler or self._scheduler.is_ready(index):
            raise ReplayBufferError(
                f"group {index} is put, but is not generating: it was never admitted, or is put or"
                " discarded already"
            )
        expected = self._scheduler.deadline_of(index)
        assert group.deadline == expected, (
            f"group {index} carries deadline {group.deadline}, was admitted with {expected}"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise ReplayBufferError("the replay buffer is closed")

    def _store_ready(self, group_index: int, stored: ReadyGroup) -> None:
        self._shelf.place(group_index, stored)
        self._num_put += 1
        self._scheduler.ready(group_index, stored.priority)
        if self._clock.num_consumed > self._scheduler.deadline_of(group_index):
            self._remove_past(self._clock.num_consumed)
        _pulse(self._arrival)

    def _give_back(self, group_index: int, reason: str, *, retry: bool = False) -> None:
        self._scheduler.remove(group_index)
        if (stored := self._release(group_index)) is not None:
            self._shelf.store.free(stored.place)
        self._clock.give_back(group_index, reason, retry=retry)
        _pulse(self._arrival)  # the learner may have waited for it

    def _release(self, group_index: int) -> ReadyGroup | None:
        if (stored := self._shelf.release(group_index)) is not None:
            _pulse(self._room)
        return stored

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        start = self._time.now()
        try:
            yield
        finally:
            self._waits[what] += self._time.now() - start


def _probabilities(picks: Sequence[Pick]) -> dict[str, list[float]]:
    return (
        {"pr": [p.probability for p in picks]} if any(p.probability != 1.0 for p in picks) else {}
    )


def _oldest_version(group: Group) -> int | None:
    return min((v for s in group.samples if (v := s.oldest_version()) is not None), default=None)


def _pulse(event: asyncio.Event) -> None:
    """Wake everyone who waits now; they look again whether it was for them."""
    event.set()
    event.clear()
