"""What an earlier process of this run left in the buffer's directory, as a restart needs it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from buffers.journal import Journal
from buffers.ledger import Account, Ledger
from buffers.segments import SegmentStore
from pipeline.core.types import Location
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.replay_pool import Entry
from pipeline.schedule.selectors import Candidate

logger = logging.getLogger(__name__)


class Recovery:
    """Answers group by group, as the restarted run admits them again, what is left of each. Without
    a ledger nothing is left of any."""

    def __init__(
        self,
        ledger: Ledger | None,
        journal: Journal,
        clock: RolloutClock,
        restored_from: str | None,
        *,
        max_times_sampled: int,
        keep_last: int,
    ) -> None:
        self._journal, self._max_times = journal, max_times_sampled
        self._accounts: dict[int, Account] = {}
        self._done: dict[int, list[Location]] = {}
        if ledger is None:
            return
        entry = {
            "t": "restore",
            "r": clock.num_trained,
            "name": restored_from,
            "v": clock.policy_version,
        }
        journal.append(entry)
        ledger.apply(entry)
        self._accounts = dict(ledger.accounts)
        self._done = self._last_places(ledger, clock.num_trained - keep_last)

    def _last_places(self, ledger: Ledger, first: int) -> dict[int, list[Location]]:
        """For every rollout from `first` on: where the groups lie that were not to be trained on
        again after it."""
        last_taken = {
            group_index: rollout_id
            for rollout_id in sorted(r for r in ledger.takes if r >= first)
            for group_index in ledger.takes[rollout_id].groups
        }
        done: dict[int, list[Location]] = {}
        for group_index, rollout_id in last_taken.items():
            account = self._accounts[group_index]
            if account.place is not None and account.times_sampled >= self._max_times:
                done.setdefault(rollout_id, []).append(account.place)
        return done

    def places(self) -> Iterator[Location]:
        """Where the groups lie that are still to be trained on, that may be trained on again, or
        that are kept to be looked at."""
        for places in self._done.values():
            yield from places
        for account in self._accounts.values():
            if (
                account.place is not None
                and account.discarded is None
                and account.times_sampled < self._max_times
            ):
                yield account.place

    def next_segment(self) -> int:
        """The first segment number under which no group was ever put."""
        return 1 + max(
            (a.place.segment for a in self._accounts.values() if a.place is not None), default=-1
        )

    def forget_what_is_gone(self, store: SegmentStore) -> None:
        """Strikes out the groups whose bytes a power loss took (durability `process` does not
        promise more); they are generated again."""
        gone = [
            a
            for a in self._accounts.values()
            if a.recallable and a.place and not store.holds(a.place)
        ]
        for account in gone:
            account.place = None
            self._journal.append({"t": "gone", "g": account.group_index})
        complete = sum(a.recallable for a in self._accounts.values())
        if complete or gone:
            logger.info(
                "the buffer's journal: %d complete groups are kept, %d are gone and generated"
                " again",
                complete,
                len(gone),
            )

    def prompt_of(self, group_index: int) -> int | None:
        """The prompt that the group answered; None when it was never admitted."""
        account = self._accounts.get(group_index)
        return None if account is None else account.prompt_index

    def pop(self, group_index: int) -> Account | None:
        """The group's account, when the group was complete or given back and the restored
        checkpoint does not cover it."""
        account = self._accounts.pop(group_index, None)
        if (
            account is None
            or account.consumed
            or not (account.discarded is not None or account.place is not None)
        ):
            return None
        return account

    def done(self, store: SegmentStore) -> dict[int, list[Location]]:
        """For every one of the last rollouts: where the groups lie that were not to be trained on
        again after it."""
        return {
            rollout_id: [place for place in places if store.holds(place)]
            for rollout_id, places in self._done.items()
        }

    def replayable(self, store: SegmentStore) -> list[tuple[Entry, Location]]:
        """The groups that the restored checkpoint was trained on and that may be trained on again,
        with where they lie."""
        out = []
        for sequence, a in enumerate(self._accounts.values()):
            if (
                a.consumed
                and a.times_sampled < self._max_times
                and a.place is not None
                and store.holds(a.place)
            ):
                # Deadlines are behind it; only the selectors of age and priority tell such groups
                # apart.
                candidate = Candidate(a.group_index, -1, sequence - len(self._accounts), a.priority)
                entry = Entry(
                    candidate=candidate,
                    oldest_version=0 if a.oldest_version is None else a.oldest_version,
                    times_sampled=a.times_sampled,
                )
                out.append((entry, a.place))
        return out
