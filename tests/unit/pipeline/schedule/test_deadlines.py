"""The deadline rule and the selectors, case by case; tests/property says that they hold in
general."""

from __future__ import annotations

import pytest

from pipeline.core.errors import ConfigError
from pipeline.schedule.deadlines import Batch, DeadlineScheduler, Wait
from pipeline.schedule.selectors import Candidate, make_selector


def make(
    P: int, deadlines: dict[int, int], ready: list[int], selector: str = "deadline"
) -> DeadlineScheduler:
    scheduler = DeadlineScheduler(P, make_selector(selector, seed=3))
    for index, deadline in deadlines.items():
        scheduler.register(index, deadline)
    for index in ready:
        scheduler.ready(index)
    return scheduler


def chosen(scheduler: DeadlineScheduler, rollout_id: int) -> tuple[int, ...]:
    plan = scheduler.plan(rollout_id)
    assert isinstance(plan, Batch)
    return tuple(pick.group_index for pick in plan.picks)


def test_a_group_that_is_due_now_is_waited_for() -> None:
    scheduler = make(2, {0: 0, 1: 1, 2: 2, 3: 2}, ready=[1, 2, 3])
    assert scheduler.plan(0) == Wait(num_missing=1, deadline=0)
    scheduler.ready(0)
    assert chosen(scheduler, 0) == (0, 1)


def test_a_group_that_a_later_rollout_can_take_is_not_waited_for() -> None:
    scheduler = make(2, {0: 1, 1: 1, 2: 2, 3: 2}, ready=[2, 3])
    assert chosen(scheduler, 0) == (2, 3)


def test_a_crowded_deadline_is_served_ahead_of_time() -> None:
    """Three groups due by rollout 1, two a rollout: rollout 0 must take one of them, whichever is
    ready."""
    scheduler = make(2, {0: 1, 1: 1, 2: 1, 3: 5, 4: 5}, ready=[3, 4])
    assert scheduler.plan(0) == Wait(num_missing=1, deadline=1)
    scheduler.ready(2)
    assert chosen(scheduler, 0) == (2, 3)


def test_a_wait_names_every_deadline_that_is_short() -> None:
    """By rollout 0 one is missing; by rollout 1 two are, and the one may be among them."""
    assert make(2, {0: 0, 1: 1, 2: 1, 3: 1, 4: 2, 5: 2}, ready=[4, 5]).plan(0) == Wait(
        num_missing=2, deadline=1
    )
    assert make(2, {0: 0, 1: 0, 2: 1, 3: 5, 4: 5}, ready=[3, 4]).plan(0) == Wait(
        num_missing=2, deadline=1
    )


def test_too_few_ready_groups_wait_for_any() -> None:
    scheduler = make(3, {0: 4, 1: 5, 2: 6}, ready=[1])
    assert scheduler.plan(0) == Wait(num_missing=2, deadline=None)


def test_a_removed_group_is_not_waited_for() -> None:
    scheduler = make(2, {0: 0, 1: 3, 2: 3}, ready=[1, 2])
    assert isinstance(scheduler.plan(0), Wait)
    scheduler.remove(0)
    assert chosen(scheduler, 0) == (1, 2)
    assert (len(scheduler), scheduler.num_ready, scheduler.num_generating) == (2, 2, 0)


def test_a_plan_changes_nothing() -> None:
    scheduler = make(2, {0: 0, 1: 0, 2: 1}, ready=[2, 0, 1])
    assert chosen(scheduler, 0) == chosen(scheduler, 0) == (0, 1)


def test_deadlines_that_cannot_be_kept_are_an_invariant_broken() -> None:
    with pytest.raises(AssertionError, match="3 groups are due by rollout 0"):
        make(2, {0: 0, 1: 0, 2: 0}, ready=[0]).plan(0)
    with pytest.raises(AssertionError, match="due by rollout 0"):
        make(2, {0: 0, 1: 5, 2: 5}, ready=[0, 1, 2]).plan(1)


@pytest.mark.parametrize(
    ("selector", "expected"), [("deadline", (2, 3)), ("fifo", (2, 4)), ("lifo", (2, 3))]
)
def test_the_selector_orders_what_deadlines_leave_free(
    selector: str, expected: tuple[int, ...]
) -> None:
    """Group 2 is due; of 3 and 4 the deadline selector takes 3, fifo the first completed, lifo the
    last."""
    assert chosen(make(2, {2: 0, 3: 5, 4: 6}, ready=[4, 2, 3], selector=selector), 0) == expected


def test_uniform_draws_anew_every_rollout_and_repeats_itself() -> None:
    draw = make_selector("uniform", seed=1)
    groups = [Candidate(i, 9, i) for i in range(4)]
    first = [min(groups, key=lambda c: draw(c, r)).group_index for r in range(400)]
    assert [
        min(groups, key=lambda c: make_selector("uniform", seed=1)(c, r)).group_index
        for r in range(400)
    ] == first
    assert all(60 <= first.count(i) <= 140 for i in range(4)), (
        "each about a quarter of the time (sd 8.7)"
    )
    other = make_selector("uniform", seed=2)
    assert [min(groups, key=lambda c: other(c, r)).group_index for r in range(400)] != first


def test_an_unknown_selector_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="--buffer-selector newest: expected one of deadline, fifo"
    ):
        make_selector("newest")
