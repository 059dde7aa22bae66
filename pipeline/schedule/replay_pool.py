"""Replay: groups that were trained on and may be trained on again.

Pure: it decides which are chosen, which are too old, and which had enough."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.schedule.selectors import Candidate, Draw, Pick, Selector


@dataclass(slots=True, kw_only=True)
class Entry:
    """A group in the pool."""

    candidate: Candidate
    oldest_version: int  # of its tokens
    times_sampled: int


class ReplayPool:
    """The way of a group: add -> choose, up to `max_times_sampled` times in all -> gone.

    With max_times_sampled 1 the pool is empty and stays so."""

    def __init__(self, *, selector: Selector, max_times_sampled: int, max_staleness: int) -> None:
        self._selector, self._max_times, self._max_staleness = (
            selector,
            max_times_sampled,
            max_staleness,
        )
        self._entries: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, group_index: int) -> Entry:
        return self._entries[group_index]

    def add(self, entry: Entry) -> bool:
        """Adds a group after its first time. Returns False when it had enough already."""
        if entry.times_sampled >= self._max_times:
            return False
        self._entries[entry.candidate.group_index] = entry
        return True

    def expire(self, policy_version: int) -> list[Entry]:
        """Removes and returns the groups that are staler than the bound at this version: the bound
        holds for every consumption."""
        old = [g for g, e in self._entries.items() if self._too_stale(e, policy_version)]
        return [self._entries.pop(g) for g in old]

    def choose(self, rollout_id: int, num_groups: int, policy_version: int) -> tuple[Pick, ...]:
        """Up to `num_groups` groups, none twice, and none that is too stale for a learner of this
        version. Nothing is changed."""
        draw = Draw(self._selector, rollout_id)
        for entry in self._entries.values():
            if not self._too_stale(entry, policy_version):
                draw.push(entry.candidate)
        return tuple(draw.pop() for _ in range(min(num_groups, len(draw))))

    def sampled(self, group_indices: Iterable[int]) -> list[Entry]:
        """These groups were trained on once more. Removes and returns those that now had enough."""
        done = []
        for group_index in group_indices:
            entry = self._entries[group_index]
            entry.times_sampled += 1
            if entry.times_sampled >= self._max_times:
                done.append(self._entries.pop(group_index))
        return done

    def _too_stale(self, entry: Entry, policy_version: int) -> bool:
        return policy_version - entry.oldest_version > self._max_staleness
