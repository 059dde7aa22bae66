"""The logical clock: windows, deadlines, release, versions, resume."""

from __future__ import annotations

import json

import pytest

from pipeline.core.errors import ConfigError
from pipeline.schedule.clock import RolloutClock


def make(
    P: int = 2, K: int = 1, N: int = 1, S: int | None = None, num_rollout: int = 10
) -> RolloutClock:
    return RolloutClock(
        rollout_batch_size=P,
        async_buffer_size=K,
        update_weights_interval=N,
        max_staleness=S,
        num_rollout=num_rollout,
    )


def admit_all(clock: RolloutClock) -> list[int]:
    out = []
    while clock.may_admit():
        out.append(clock.admit().group_index)
    return out


def train(clock: RolloutClock, rollout_id: int, *, push: bool = True) -> None:
    clock.consume(rollout_id, list(clock.outstanding)[: clock.batch_size])
    clock.trained(rollout_id)
    if push and clock.push_due(rollout_id):
        clock.pushed()


def test_the_window_is_k_plus_one_rollouts() -> None:
    clock = make(P=3, K=2)
    assert admit_all(clock) == list(range(9))
    train(clock, 0)
    assert admit_all(clock) == [9, 10, 11]


def test_synchronous_mode_admits_one_rollout_at_the_newest_version() -> None:
    clock = make(P=2, K=0)
    for r in range(4):
        admit_all(clock)
        assert [(a.deadline, a.policy_version) for a in clock.outstanding.values()] == [(r, r)] * 2
        train(clock, r, push=False)
        assert not clock.may_admit(), "the push is part of the release"
        clock.pushed()


@pytest.mark.parametrize(
    ("interval", "steps", "released"),
    [
        (1, "tptp", [0, 1, 1, 2]),
        (1, "ttpp", [0, 0, 1, 2]),  # training runs ahead of the pushes
        (2, "ttpt", [1, 1, 2, 3]),  # rollout 0 needs no push, rollout 1 does
        (3, "tttptttp", [1, 2, 2, 3, 4, 5, 5, 6]),
        (2, "tttp", [1, 1, 1, 3]),  # the push after rollout 1 also frees rollout 2
    ],
)
def test_released_counts_trained_rollouts_whose_due_push_is_complete(
    interval: int, steps: str, released: list[int]
) -> None:
    clock = make(P=1, K=interval * 3, N=interval)
    seen = []
    for step in steps:
        admit_all(clock)
        if step == "t":
            train(clock, clock.num_trained, push=False)
        else:
            clock.pushed()
        seen.append(clock.released)
    assert seen == released


def test_the_default_bound_is_twice_k_over_n_rounded_up() -> None:
    assert [make(K=k, N=n).max_staleness for k, n in [(0, 1), (1, 1), (4, 2), (5, 2), (3, 4)]] == [
        0,
        2,
        4,
        6,
        2,
    ]
    assert make(K=3, N=2, S=4).max_deadline_distance == 8


def test_a_deadline_lies_d_rollouts_after_the_release() -> None:
    clock = make(P=1, K=1, N=2, S=2)
    assert [clock.admit().deadline for _ in range(2)] == [4, 4]
    train(clock, 0)
    assert clock.admit().deadline == 5


@pytest.mark.parametrize(
    ("knobs", "flag"),
    [
        ({"K": 4, "N": 2, "S": 1}, "--max-staleness 1"),
        ({"K": -1}, "--async-buffer-size -1"),
        ({"N": 0}, "--update-weights-interval 0"),
        ({"P": 0}, "--rollout-batch-size 0"),
        ({"num_rollout": 0}, "--num-rollout 0"),
        ({"K": 0, "S": -1}, "--max-staleness -1"),
    ],
)
def test_bad_knobs_are_refused_with_flag_and_value(knobs: dict[str, int], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        make(**knobs)


def test_admission_stops_when_the_rest_of_the_run_is_covered() -> None:
    clock = make(P=2, K=4, num_rollout=3)
    assert len(admit_all(clock)) == 6
    clock.give_back(3, "filtered")
    assert admit_all(clock) == [6], "the lost group is replaced, under an index of its own"
    for r in range(3):
        train(clock, r)
        assert not clock.may_admit()
    assert clock.finished and not clock.outstanding
    assert clock.given_back == {"filtered": 1}


def test_only_outstanding_groups_come_back_and_only_in_order_is_trained() -> None:
    clock = make()
    admit_all(clock)
    with pytest.raises(AssertionError, match="out of order"):
        clock.consume(1, [0, 1])
    with pytest.raises(AssertionError, match="2 distinct groups"):
        clock.consume(0, [0, 0])
    clock.consume(0, [0, 1])
    with pytest.raises(AssertionError, match="not outstanding"):
        clock.give_back(0, "failed")
    with pytest.raises(AssertionError, match="out of order"):
        clock.trained(1)
    with pytest.raises(AssertionError, match="no push is due"):
        clock.pushed()


def test_staleness_is_measured_against_the_version_the_learner_consumes_at() -> None:
    clock = make(P=1, K=4, N=2)
    admit_all(clock)
    assert [clock.version_at(r) for r in range(5)] == [0, 0, 1, 1, 2]
    train(clock, 0)
    train(clock, 1, push=False)
    clock.consume(2, [2])
    assert clock.policy_version == 0 and clock.staleness(0) == 1, (
        "a push under way already counts for the learner"
    )
    assert clock.staleness(0, rollout_id=5) == 2


def test_listeners_hear_whatever_may_open_the_window() -> None:
    clock, heard = make(P=1), []
    clock.subscribe(lambda: heard.append(clock.released))
    admit_all(clock)
    clock.give_back(1, "failed")
    train(clock, 0)
    assert heard == [0, 0, 1]


def test_resume_goes_on_without_a_burst() -> None:
    clock = make(P=2, K=2)
    admit_all(clock)
    train(clock, 0)
    clock.give_back(3, "failed")
    admit_all(clock)
    clock.consume(1, [2, 4])  # taken, not trained: these two must be trained yet
    state = json.loads(json.dumps(clock.state_dict()))
    other = make(P=2, K=2)
    other.load_state_dict(state)
    assert list(other.outstanding) == [2, 4, 5, 6, 7, 8]
    assert [a.deadline for a in other.outstanding.values()] == [4, 4, 4, 5, 5, 5]
    assert (other.released, other.policy_version, other.num_consumed, other.given_back) == (
        1,
        1,
        1,
        {"failed": 1},
    )
    assert not other.may_admit(), "what is outstanding is still counted"
    assert other.state_dict() == state


def test_resume_keeps_a_push_pending() -> None:
    clock = make(P=1)
    admit_all(clock)
    train(clock, 0, push=False)
    other = make(P=1)
    other.load_state_dict(clock.state_dict())
    assert other.push_pending and other.released == 0
    assert other.pushed() == 1 and other.released == 1


def test_resume_with_other_knobs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--async-buffer-size 2 \(saved: 1\)"):
        make(K=2).load_state_dict(make(K=1).state_dict())
