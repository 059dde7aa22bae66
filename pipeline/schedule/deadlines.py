"""Which groups make up a rollout, so that no deadline is ever missed. Pure: no tasks, no time, no
I/O.

The rule. Let c(d) be the outstanding groups (generating or ready) with deadline <= d. Rollouts
r+1..d can consume P*(d - r) of them, so at least need(d) = c(d) - P*(d - r) of rollout r's batch
must come from them. Only for those does a rollout wait (and for P groups to be ready at all); the
rest of the batch is whatever is ready, in the selector's order.

Without `waits` (--stale-policy drop or retry) nothing is waited for but P ready groups, of which
those that are due go first; what is left behind its deadline is for the caller to remove."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.schedule.selectors import DEADLINE, Candidate, Draw, Pick, Selector


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The rollout may be taken: P ready groups."""

    picks: tuple[Pick, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """The rollout must wait for `num_missing` more ready groups with deadline <= `deadline` (None:
    for any group)."""

    num_missing: int
    deadline: int | None

    def needs(self, deadline: int) -> bool:
        """Does a group with this deadline bring the rollout nearer when it becomes ready?"""
        return self.deadline is None or deadline <= self.deadline


@dataclass(slots=True)
class _Bucket:
    """The outstanding groups of one deadline."""

    generating: dict[int, None] = field(default_factory=dict)
    ready: dict[int, Candidate] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.generating) + len(self.ready)


class DeadlineScheduler:
    """The way of a group: register -> ready -> (chosen by plan) -> remove.

    `plan` costs O(deadlines) while waiting and O(n log n) when it chooses."""

    def __init__(
        self, rollout_batch_size: int, selector: Selector = DEADLINE, *, waits: bool = True
    ) -> None:
        self.batch_size, self._waits = rollout_batch_size, waits
        self._selector = selector
        self._deadline: dict[int, int] = {}  # group_index -> deadline, of everything outstanding
        self._buckets: dict[int, _Bucket] = {}
        self._num_ready = 0
        self._sequence = 0

    def __len__(self) -> int:
        """How many groups are outstanding."""
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

    def candidate(self, group_index: int) -> Candidate:
        """What the selector knows of a ready group."""
        return self._buckets[self._deadline[group_index]].ready[group_index]

    def is_ready(self, group_index: int) -> bool:
        return (
            group_index in self._deadline
            and group_index in self._buckets[self._deadline[group_index]].ready
        )

    def register(self, group_index: int, deadline: int) -> None:
        """The group was admitted and begins to generate."""
        assert group_index not in self._deadline, f"group {group_index} registered twice"
        self._deadline[group_index] = deadline
        self._buckets.setdefault(deadline, _Bucket()).generating[group_index] = None

    def ready(self, group_index: int, priority: float = 1.0) -> None:
        """The group is complete and stored. `priority`: the weight of the selector
        `prioritized`."""
        deadline = self._deadline[group_index]
        bucket = self._buckets[deadline]
        assert group_index in bucket.generating, f"group {group_index} completed twice"
        del bucket.generating[group_index]
        bucket.ready[group_index] = Candidate(group_index, deadline, self._sequence, priority)
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

    def plan(self, rollout_id: int, wanted: Mapping[int, int] | None = None) -> Batch | Wait:
        """The batch of this rollout, or what it waits for. Changes nothing: the taker removes what
        it takes.

        `wanted`, group -> rank: these come before the selector's order (but not before those that
        are due)."""
        needs = self._needs(rollout_id)
        if self._num_ready < self.batch_size:
            return Wait(num_missing=self.batch_size - self._num_ready, deadline=None)
        short = [(need - ready, deadline) for deadline, need, ready in needs if ready < need]
        if short:
            return Wait(num_missing=max(s[0] for s in short), deadline=short[-1][1])
        return Batch(picks=self._choose(rollout_id, needs, wanted))

    def ready_groups(self, rollout_id: int) -> list[int]:
        """All ready groups in the order in which `plan` would use them up."""
        draw = Draw(self._selector, rollout_id)
        for bucket in self._buckets.values():
            for c in bucket.ready.values():
                draw.push(c)
        return [draw.pop().group_index for _ in range(len(draw))]

    def past(self, rollout_id: int) -> list[int]:
        """Ready groups whose deadline is before this rollout."""
        return [
            g
            for deadline in sorted(self._buckets)
            if deadline < rollout_id
            for g in self._buckets[deadline].ready
        ]

    def _needs(self, rollout_id: int) -> list[tuple[int, int, int]]:
        """(d, need(d), ready groups with deadline <= d) for every deadline, ascending."""
        out, outstanding, ready = [], 0, 0
        for deadline in sorted(self._buckets):
            outstanding += len(self._buckets[deadline])
            ready += len(self._buckets[deadline].ready)
            need = outstanding - self.batch_size * (deadline - rollout_id)
            if not self._waits:
                need = min(need, ready, self.batch_size)
            assert need <= self.batch_size, (
                f"{outstanding} groups are due by rollout {deadline}, rollouts"
                f" {rollout_id}..{deadline} take {self.batch_size} each"
            )
            out.append((deadline, need, ready))
        return out

    def _choose(
        self, rollout_id: int, needs: list[tuple[int, int, int]], wanted: Mapping[int, int] | None
    ) -> tuple[Pick, ...]:
        """Goes through the deadlines in ascending order: where need(d) is not met yet, takes from
        the groups due by d, the best first; then fills up."""
        draw = Draw(
            self._selector if wanted is None else _preferring(wanted, self._selector), rollout_id
        )
        chosen: list[Pick] = []
        for deadline, need, _ in needs:
            for c in self._buckets[deadline].ready.values():
                draw.push(c)
            while len(chosen) < need:
                chosen.append(draw.pop())
        while len(chosen) < self.batch_size:
            chosen.append(draw.pop())
        return tuple(chosen)


def _preferring(wanted: Mapping[int, int], selector: Selector) -> Selector:
    """Groups of `wanted` first, by rank (below every selector's key); the rest in the selector's
    order."""
    return Selector(
        lambda c, r: wanted[c.group_index] - 1e12 if c.group_index in wanted else selector(c, r)
    )
