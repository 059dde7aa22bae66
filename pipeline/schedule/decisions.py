"""Every decision of a run in one object: who may start, who makes up a rollout, who is trained on
again, who came too late. Pure: no tasks, no time, no I/O.

The replay buffer wraps it with waiting and files; the audit of a run drives it by the
journal. So there is one order in which clock, scheduler and replay pool are moved, and both follow
it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.core.types import Admission
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.deadlines import DeadlineScheduler, Wait
from pipeline.schedule.replay_pool import Entry, ReplayPool
from pipeline.schedule.selectors import DEADLINE, Pick, Selector

StalePolicy = Literal["wait", "drop", "retry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a rollout takes: groups for the first time, then groups that were trained on before."""

    fresh: tuple[Pick, ...]
    again: tuple[Pick, ...]

    @property
    def picks(self) -> tuple[Pick, ...]:
        return (*self.fresh, *self.again)

    @property
    def fresh_indices(self) -> list[int]:
        return [pick.group_index for pick in self.fresh]

    @property
    def again_indices(self) -> list[int]:
        return [pick.group_index for pick in self.again]


class Decisions:
    """The way of a group: admit -> ready -> (chosen) consume, or admit -> [ready ->] discard.

    Groups that are outstanding in the clock at the beginning (after a resume) count as
    generating."""

    def __init__(
        self,
        clock: RolloutClock,
        *,
        selector: Selector = DEADLINE,
        max_times_sampled: int = 1,
        stale_policy: StalePolicy = "wait",
        lockstep: bool = False,
        replayable: Iterable[Entry] = (),
    ) -> None:
        """`lockstep` (--fixed-staleness): no rollout is chosen while anything generates.
        `replayable`: groups that were trained on before a resume and may be again."""
        self.clock, self._stale_policy, self._lockstep = clock, stale_policy, lockstep
        self._scheduler = DeadlineScheduler(
            clock.batch_size, selector, waits=stale_policy == "wait"
        )
        self._pool = ReplayPool(
            selector=selector,
            max_times_sampled=max_times_sampled,
            max_staleness=clock.max_staleness,
        )
        for entry in replayable:
            self._pool.add(entry)
        self._oldest: dict[int, int] = {}  # of ready groups: the oldest version of their tokens
        for admission in clock.outstanding.values():
            self._scheduler.register(admission.group_index, admission.deadline)

    # -- what is so

    def __contains__(self, group_index: int) -> bool:
        """Is this group outstanding: generating, or ready?"""
        return group_index in self._scheduler

    @property
    def num_generating(self) -> int:
        return self._scheduler.num_generating

    @property
    def num_ready(self) -> int:
        return self._scheduler.num_ready

    @property
    def num_replayable(self) -> int:
        return len(self._pool)

    @property
    def settled(self) -> bool:
        """Has all that may be admitted been admitted, and completed?"""
        return self.num_generating == 0 and not self.may_admit()

    def is_ready(self, group_index: int) -> bool:
        return self._scheduler.is_ready(group_index)

    def deadline_of(self, group_index: int) -> int:
        """The last rollout that may take this outstanding group."""
        return self._scheduler.deadline_of(group_index)

    def times_sampled(self, group_index: int) -> int:
        """How many rollouts have taken this group, which is ready or replayable."""
        return 0 if group_index in self._scheduler else self._pool[group_index].times_sampled

    def is_late(self, group_index: int) -> bool:
        """Is the last rollout that might have taken this outstanding group behind us?"""
        return self.deadline_of(group_index) < self.clock.num_consumed

    def late_groups(self) -> list[int]:
        """Ready groups that no rollout may take any more; whoever drives this discards them. With
        the policy `wait` there are none."""
        return self._scheduler.past(self.clock.num_consumed)

    def outdated_groups(self, rollout_id: int) -> list[int]:
        """Ready groups with tokens that are staler than the bound in this rollout. A group's
        deadline sees to it that there are none, unless it was generated before it was admitted."""
        bound = self.clock.max_staleness
        return [g for g, v in self._oldest.items() if self.clock.staleness(v, rollout_id) > bound]

    @property
    def late_reason(self) -> str:
        """The reason with which a late group is discarded."""
        return "stale: retried" if self.retries_late else "stale: dropped"

    @property
    def retries_late(self) -> bool:
        """Is a late group's prompt tried again?"""
        return self._stale_policy == "retry"

    # -- what a group goes through

    def may_admit(self) -> bool:
        assert len(self._scheduler) == len(self.clock.outstanding), (
            "clock and scheduler disagree on what is outstanding: admissions must go through here"
        )
        return self.clock.may_admit()

    def admit(self, prompt_index: int | None = None) -> Admission:
        """`prompt_index`: the prompt that this group answered before a restart, if it did."""
        admission = self.clock.admit(prompt_index)
        self._scheduler.register(admission.group_index, admission.deadline)
        return admission

    def ready(
        self, group_index: int, *, priority: float = 1.0, oldest_version: int | None = None
    ) -> None:
        """The group is complete. `oldest_version`: the oldest among its tokens; by default the
        version of its admission."""
        self._scheduler.ready(group_index, priority)
        self._oldest[group_index] = (
            self.clock.outstanding[group_index].policy_version
            if oldest_version is None
            else oldest_version
        )

    def discard(self, group_index: int, reason: str, *, retry: bool = False) -> None:
        """The group failed for good, was filtered, or is late: its slot becomes a new admission
        (`retry`: of the same prompt)."""
        self._scheduler.remove(group_index)
        self._oldest.pop(group_index, None)
        self.clock.give_back(group_index, reason, retry=retry)

    def ready_groups(self, rollout_id: int) -> list[int]:
        """All ready groups, in the order in which `choose` would use them up."""
        return self._scheduler.ready_groups(rollout_id)

    def choose(self, rollout_id: int, wanted: Mapping[int, int] | None = None) -> Choice | Wait:
        """What this rollout takes, or what it waits for. Changes nothing.

        `wanted`, group -> rank: these come before the selector's order (but not before those that
        are due)."""
        if (wait := self._min_size(rollout_id)) is not None:
            return wait
        if self._lockstep and self.num_generating:
            return Wait(num_missing=self.num_generating, deadline=None)
        plan = self._scheduler.plan(rollout_id, wanted)
        if isinstance(plan, Wait):
            return plan
        num_again = self.clock.limiter.batch - len(plan.picks)
        again = self._pool.choose(rollout_id, num_again, self.clock.version_at(rollout_id))
        return Choice(fresh=plan.picks, again=again)

    def consume(self, rollout_id: int, fresh: Sequence[int], again: Sequence[int]) -> list[int]:
        """The learner takes these groups. Returns the groups that no later rollout will need."""
        retired = self._pool.expire(self.clock.version_at(rollout_id))
        self.clock.consume(rollout_id, fresh)
        done = [e.candidate.group_index for e in (*retired, *self._pool.sampled(again))]
        for group_index in fresh:
            entry = Entry(
                candidate=self._scheduler.candidate(group_index),
                oldest_version=self._oldest.pop(group_index),
                times_sampled=1,
            )
            self._scheduler.remove(group_index)
            if not self._pool.add(entry):
                done.append(group_index)
        return done

    def _min_size(self, rollout_id: int) -> Wait | None:
        """How many groups must be there. The minimum is for the beginning: at the end of a run
        there may be no more groups than the last rollouts need."""
        limiter, size = self.clock.limiter, self.num_ready + self.num_replayable
        if rollout_id > 0 or limiter.can_sample(inserts=self.num_ready, samples=0, size=size):
            return None
        return Wait(num_missing=limiter.min_size_to_sample - size, deadline=None)
