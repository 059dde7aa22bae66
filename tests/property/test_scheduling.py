"""The decisions of a run, driven at random: the bound holds, each group is consumed once, or with
replay as often as allowed, nothing deadlocks, nothing waits in vain."""

from __future__ import annotations

import itertools
import json
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.core.types import Admission
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.deadlines import Batch, DeadlineScheduler, Wait
from pipeline.schedule.decisions import Choice, Decisions, StalePolicy
from pipeline.schedule.rate_limiter import RateLimiter
from pipeline.schedule.selectors import Candidate, make_selector

SELECTORS = st.sampled_from(["deadline", "fifo", "lifo", "uniform"])


class Pipeline(RuleBasedStateMachine):
    """Generators, one learner and a push channel, each free to move whenever it may.

    Tokens are as stale as they can be: every group is generated entirely by the oldest version that
    any engine served when the group was admitted, which is what the clock had confirmed."""

    @initialize(
        P=st.integers(1, 4),
        K=st.integers(0, 4),
        N=st.integers(1, 3),
        slack=st.integers(0, 2),
        rollouts=st.integers(1, 12),
        name=SELECTORS,
        most=st.integers(1, 3),
        policy=st.sampled_from(["wait", "wait", "drop", "retry"]),
    )
    def begin(
        self,
        P: int,
        K: int,
        N: int,
        slack: int,
        rollouts: int,
        name: str,
        most: int,
        policy: StalePolicy,
    ) -> None:
        self.knobs = {
            "rollout_batch_size": P,
            "async_buffer_size": K,
            "update_weights_interval": N,
            "num_rollout": rollouts,
        }
        self.knobs["max_staleness"] = -(-K // N) + slack
        self.limiter = RateLimiter.rollouts(fresh=P, samples_per_insert=float(most), buffer_size=K)
        self.options = {
            "selector": make_selector(name),
            "max_times_sampled": most,
            "stale_policy": policy if K else "wait",
        }
        self.clock = RolloutClock(**self.knobs, limiter=self.limiter)
        self.decisions = Decisions(self.clock, **self.options)
        self.version: dict[int, int] = {}  # token version of every group ever admitted
        self.newest: dict[int, int] = {}  # the newest version that any engine served until it ended
        self.staged = 0  # pushes that some engines may have and others not yet
        self.deadline: dict[int, int] = {}
        self.lost: set[int] = set()
        self.consumed: dict[int, int] = {}  # group -> rollout, the first
        self.times: Counter[int] = Counter()  # rollouts that took the group
        self.settled: set[int] = set()  # groups that nobody needs any more
        self.generating: list[int] = []

    # -- moves -------------------------------------------------------------------------------------

    @precondition(lambda self: self.decisions.may_admit())
    @rule(count=st.integers(1, 8))
    def admit(self, count: int) -> None:
        for _ in range(count):
            if self.decisions.may_admit():
                self._admitted(self.decisions.admit())

    @precondition(lambda self: self.generating)
    @rule(data=st.data(), count=st.integers(1, 8))
    def complete(self, data: st.DataObject, count: int) -> None:
        for _ in range(min(count, len(self.generating))):
            self._complete(data.draw(st.integers(0, len(self.generating) - 1)))

    @precondition(lambda self: self.generating)
    @rule(data=st.data(), reason=st.sampled_from(["failed", "zero_std"]))
    def lose(self, data: st.DataObject, reason: str) -> None:
        # generating, or ready and filtered late
        self._lose(data.draw(st.sampled_from(sorted(self.clock.outstanding))), reason)

    @precondition(lambda self: self.clock.num_consumed < self.clock.num_rollout)
    @rule()
    def take(self) -> None:
        choice = self.decisions.choose(self.clock.num_consumed)
        assert choice == self.decisions.choose(self.clock.num_consumed), "choosing changes nothing"
        if isinstance(choice, Choice):
            self._consume(choice)

    @precondition(lambda self: self.clock.num_trained < self.clock.num_consumed)
    @rule()
    def train(self) -> None:
        self.clock.trained(self.clock.num_trained)

    @precondition(lambda self: self.clock.push_pending)
    @rule()
    def stage(self) -> None:
        """The learner goes on while some engines have the new weights and others the old ones."""
        self.staged = self.clock.policy_version + 1

    @precondition(lambda self: self.staged > self.clock.policy_version)
    @rule()
    def push(self) -> None:
        assert self.clock.pushed() == self.clock.policy_version == self.staged

    @rule(count=st.integers(1, 40))
    def run_with_lazy_pushes(self, count: int) -> None:
        """A longer stretch in which everyone moves but the push channel, as long as anybody can."""
        for _ in range(count):
            if not self.clock.finished:
                self._advance(lazy_push=True)

    @rule()
    def crash(self) -> None:
        """Resume from the clock's state alone: what was not trained is generated again."""
        state = json.loads(json.dumps(self.clock.state_dict()))
        trained, before = self.clock.num_trained, self.clock
        self.clock = RolloutClock(**self.knobs, limiter=self.limiter)
        self.clock.load_state_dict(state)
        assert (self.clock.policy_version, self.clock.released) == (
            before.policy_version,
            before.released,
        )
        self.consumed = {g: r for g, r in self.consumed.items() if r < trained}
        self.times = Counter(dict.fromkeys(self.consumed, 1))
        self.settled = set(self.consumed)  # this driver keeps no bytes to replay them from
        self.decisions = Decisions(self.clock, **self.options)
        self.generating = []
        self.staged = self.clock.policy_version  # a snapshot is taken when no push is under way
        for admission in self.clock.outstanding.values():
            self._admitted(admission)

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def the_window_is_kept(self) -> None:
        clock = self.clock
        assert clock.released // clock.interval <= clock.policy_version, (
            "a rollout is released whose due push is missing"
        )
        assert len(clock.outstanding) <= (clock.buffer_size + 1) * clock.batch_size
        decisions = self.decisions
        assert len(clock.outstanding) == decisions.num_generating + decisions.num_ready
        assert decisions.num_generating == len(self.generating)
        assert decisions.num_replayable == len(self.consumed) - len(self.settled)
        assert not decisions.late_groups(), "this driver removes late groups at once"
        held = clock.num_admitted - sum(clock.given_back.values())
        assert held <= clock.num_rollout * clock.batch_size

    def teardown(self) -> None:
        """Whatever happened: if groups keep completing, worst one last, the run ends, and every
        group has one fate."""
        if not hasattr(self, "clock"):
            return
        for _ in range(10_000):
            if self.clock.finished:
                break
            self._advance()
        assert self.clock.finished, f"deadlock at rollout {self.clock.num_consumed}"
        assert set(self.consumed) | self.lost == set(range(self.clock.num_admitted))
        assert not set(self.consumed) & self.lost
        counts = [list(self.consumed.values()).count(r) for r in range(self.clock.num_rollout)]
        assert counts == [self.clock.batch_size] * self.clock.num_rollout

    def _advance(self, lazy_push: bool = False) -> None:
        clock = self.clock
        if clock.push_pending and not lazy_push:
            self.staged = clock.pushed()
        elif clock.num_trained < clock.num_consumed:
            clock.trained(clock.num_trained)
        elif self.decisions.may_admit():
            self._admitted(self.decisions.admit())
        elif isinstance(choice := self.decisions.choose(clock.num_consumed), Choice):
            self._consume(choice)
        elif choice.num_missing > self.decisions.num_generating:
            assert clock.push_pending, "nobody can move"
            self.staged = clock.pushed()
        else:
            waited_for = [g for g in self.generating if choice.needs(self.deadline[g])]
            assert len(waited_for) >= choice.num_missing, "waits for more groups than there are"
            self._complete(self.generating.index(waited_for[-1]))

    def _admitted(self, admission: Admission) -> None:
        self.version[admission.group_index] = admission.policy_version
        self.deadline[admission.group_index] = admission.deadline
        self.generating.append(admission.group_index)

    def _complete(self, position: int) -> None:
        group = self.generating.pop(position)
        self.newest[group] = max(self.staged, self.clock.policy_version)
        self.decisions.ready(group)
        self._lose_late_ones()

    def _lose(self, group: int, reason: str, *, retry: bool = False) -> None:
        self.decisions.discard(group, reason, retry=retry)
        self.generating = [g for g in self.generating if g != group]
        self.lost.add(group)

    def _lose_late_ones(self) -> None:
        for group in self.decisions.late_groups():
            assert self.options["stale_policy"] != "wait", f"group {group} missed its deadline"
            assert self.deadline[group] < self.clock.num_consumed
            retries = self.decisions.retries_late
            self._lose(group, self.decisions.late_reason, retry=retries)

    def _consume(self, choice: Choice) -> None:
        rollout = self.clock.num_consumed
        taken = [*choice.fresh_indices, *choice.again_indices]
        assert len(set(taken)) == len(taken) <= self.limiter.batch
        done = self.decisions.consume(rollout, choice.fresh_indices, choice.again_indices)
        self.times.update(taken)
        assert not set(done) & self.settled
        self.settled |= set(done)
        learner = rollout // self.knobs["update_weights_interval"]
        most = self.options["max_times_sampled"]
        for group in taken:
            assert 0 <= learner - self.version[group] <= self.knobs["max_staleness"]
            assert self.newest[group] <= learner, "sampled by weights that come after the learner's"
            assert self.times[group] <= most
            assert (group in done) == (self.times[group] == most)
        for group in choice.again_indices:
            assert self.consumed[group] < rollout
        for group in self.consumed.keys() - self.settled:
            bound = self.knobs["max_staleness"]
            assert learner - self.version[group] <= bound, "too stale, and still kept for replay"
        for group in choice.fresh_indices:
            assert (
                group not in self.generating
                and group not in self.consumed
                and group not in self.lost
            )
            self.consumed[group] = rollout
            assert rollout <= self.deadline[group]
            assert (
                self.clock.staleness(self.version[group], rollout) == learner - self.version[group]
            )


TestPipeline = Pipeline.TestCase
TestPipeline.settings = settings(
    max_examples=200, stateful_step_count=60, suppress_health_check=list(HealthCheck)
)


@st.composite
def states(draw: st.DrawFn) -> tuple[int, list[tuple[int, bool]]]:
    """P, and (deadline - rollout, ready?) of a few outstanding groups whose deadlines can be
    kept."""
    P = draw(st.integers(1, 3))
    groups = draw(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=9))
    kept: list[tuple[int, bool]] = []
    for group in groups:
        if feasible(P, [d for d, _ in [*kept, group]], rollouts_from=0):
            kept.append(group)
    return P, kept


def feasible(P: int, deadlines: list[int], rollouts_from: int) -> bool:
    """Can all be consumed in time by rollouts `rollouts_from`.., P each, in the order of their
    deadlines?"""
    return all(
        rollouts_from + place // P <= deadline for place, deadline in enumerate(sorted(deadlines))
    )


@given(states(), st.sampled_from(["deadline", "fifo", "lifo"]), st.integers(0, 5))
@settings(max_examples=600)
def test_the_plan_is_the_best_batch_that_endangers_no_deadline(
    state: tuple[int, list[tuple[int, bool]]], name: str, rollout: int
) -> None:
    """Against brute force over all batches: it waits exactly when no batch of ready groups is safe,
    and otherwise takes the one that is best in the selector's order."""
    P, groups = state
    selector = make_selector(name)
    scheduler = DeadlineScheduler(P, selector)
    for index, (slack, _) in enumerate(groups):
        scheduler.register(index, rollout + slack)
    candidates = [
        Candidate(i, rollout + slack, i) for i, (slack, ready) in enumerate(groups) if ready
    ]
    for c in candidates:
        scheduler.ready(c.group_index)
    ranked = sorted(candidates, key=lambda c: (selector(c, rollout), c.sequence))
    safe = [
        set(places)
        for places in itertools.combinations(range(len(ranked)), P)
        if feasible(
            P,
            [
                rollout + s
                for i, (s, _) in enumerate(groups)
                if i not in {ranked[p].group_index for p in places}
            ],
            rollout + 1,
        )
    ]
    plan = scheduler.plan(rollout)
    if not safe:
        assert isinstance(plan, Wait)
        return
    assert isinstance(plan, Batch)
    best = min(safe, key=sorted)
    assert {pick.group_index for pick in plan.picks} == {ranked[p].group_index for p in best}


@given(states())
@settings(max_examples=300)
def test_a_wait_ends_when_enough_of_those_it_names_complete(
    state: tuple[int, list[tuple[int, bool]]],
) -> None:
    P, groups = state
    scheduler = DeadlineScheduler(P)
    for index, (deadline, _) in enumerate(groups):
        scheduler.register(index, deadline)
    for index, (_, ready) in enumerate(groups):
        if ready:
            scheduler.ready(index)
    while isinstance(plan := scheduler.plan(0), Wait) and len(scheduler) >= P:
        waited_for = [
            g
            for g in range(len(groups))
            if not scheduler.is_ready(g) and plan.needs(scheduler.deadline_of(g))
        ]
        assert len(waited_for) >= plan.num_missing > 0
        scheduler.ready(waited_for[-1])
