"""Which groups make up a rollout, so that no deadline is ever missed. Pure: no tasks, no time, no I/O.

The rule. Let c(d) be the outstanding groups (generating or ready) with deadline <= d. Rollouts r+1..d can consume P*(d - r)
of them, so at least need(d) = c(d) - P*(d - r) of rollout r's batch must come from them. Only for those does a rollout wait
(and for P groups to be ready at all); the rest of the batch is whatever is ready, in the selector's order.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from buffers import selectors
from buffers.selectors import Candidate, Selector


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The rollout may be taken: P ready groups."""

    group_indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """The rollout must wait for `num_missing` more ready groups with deadline <= `deadline` (None: for any group)."""

    num_missing: int
    deadline: int | None

    def needs(self, deadline: int) -> bool:
        """Does a group with this deadline, becoming ready, bring the rollout nearer?"""
        return self.deadline is None or deadline <= self.deadline


@dataclass(slots=True)
class _Bucket:
    """Outstanding groups of one deadline."""

    generating: dict[int, None] = field(default_factory=dict)
    ready: dict[int, Candidate] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.generating) + len(self.ready)


class DeadlineScheduler:
    """register -> ready -> (chosen by plan) -> remove. Costs: plan O(deadlines) while waiting, O(n log n) when it chooses."""

    def __init__(self, rollout_batch_size: int, selector: Selector = selectors.deadline) -> None:
        self.batch_size = rollout_batch_size
        self._selector = selector
        self._deadline: dict[int, int] = {}  # group_index -> deadline, of everything outstanding
        self._buckets: dict[int, _Bucket] = {}
        self._num_ready = 0
        self._sequence = 0

    def __len__(self) -> int:
        """Outstanding groups."""
        return len(self._deadline)

    def __contains__(self, group_index: int) -> bool:
        return group_index in self._deadline

    @property
    def num_ready(self) -> int:
        return self._num_ready

    @property
    def num_generating(self) -> int:
        return len(self._deadline) - self._num_ready

    def deadline_of(self, group_index: int) -> int:
        return self._deadline[group_index]

    def is_ready(self, group_index: int) -> bool:
        return group_index in self._deadline and group_index in self._buckets[self._deadline[group_index]].ready

    def register(self, group_index: int, deadline: int) -> None:
        """The group was admitted and begins to generate."""
        assert group_index not in self._deadline, f"group {group_index} registered twice"
        self._deadline[group_index] = deadline
        self._buckets.setdefault(deadline, _Bucket()).generating[group_index] = None

    def ready(self, group_index: int) -> None:
        """The group is complete and stored."""
        deadline = self._deadline[group_index]
        bucket = self._buckets[deadline]
        assert group_index in bucket.generating, f"group {group_index} completed twice"
        del bucket.generating[group_index]
        bucket.ready[group_index] = Candidate(group_index, deadline, self._sequence)
        self._sequence += 1
        self._num_ready += 1

    def remove(self, group_index: int) -> None:
        """The group was consumed, failed for good, or was filtered."""
        deadline = self._deadline.pop(group_index)
        bucket = self._buckets[deadline]
        if bucket.ready.pop(group_index, None) is not None:
            self._num_ready -= 1
        else:
            del bucket.generating[group_index]
        if not len(bucket):
            del self._buckets[deadline]

    def plan(self, rollout_id: int) -> Batch | Wait:
        """The batch of this rollout, or what it waits for. Changes nothing: the taker removes what it takes."""
        needs = self._needs(rollout_id)
        if self._num_ready < self.batch_size:
            return Wait(num_missing=self.batch_size - self._num_ready, deadline=None)
        short = [(need - ready, deadline) for deadline, need, ready in needs if ready < need]
        if short:
            return Wait(num_missing=max(s[0] for s in short), deadline=short[-1][1])
        return Batch(group_indices=self._choose(rollout_id, needs))

    def waited_for(self, wait: Wait) -> Iterator[int]:
        """The generating groups among which `wait.num_missing` must complete."""
        for deadline in sorted(self._buckets):
            if wait.needs(deadline):
                yield from self._buckets[deadline].generating

    def _needs(self, rollout_id: int) -> list[tuple[int, int, int]]:
        """(d, need(d), ready groups with deadline <= d) for every deadline, ascending."""
        out, outstanding, ready = [], 0, 0
        for deadline in sorted(self._buckets):
            outstanding += len(self._buckets[deadline])
            ready += len(self._buckets[deadline].ready)
            need = outstanding - self.batch_size * (deadline - rollout_id)
            assert need <= self.batch_size, (
                f"{outstanding} groups are due by rollout {deadline}, rollouts {rollout_id}..{deadline} take {self.batch_size} each"
            )
            out.append((deadline, need, ready))
        return out

    def _choose(self, rollout_id: int, needs: list[tuple[int, int, int]]) -> tuple[int, ...]:
        """Deadlines ascending: when need(d) is not met yet, take from those due by d, best first; then fill up."""
        heap: list[tuple[int, int, int]] = []  # (selector's key, completion order, group)
        chosen: list[int] = []
        for deadline, need, _ in needs:
            for c in self._buckets[deadline].ready.values():
                heapq.heappush(heap, (self._selector(c, rollout_id), c.sequence, c.group_index))
            while len(chosen) < need:
                chosen.append(heapq.heappop(heap)[2])
        while len(chosen) < self.batch_size:
            chosen.append(heapq.heappop(heap)[2])
        return tuple(chosen)
