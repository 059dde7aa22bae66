"""Continuous batching: who runs, who waits, and how long a step takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.engine.mock_decode import ContinuousBatch


def batch(slots: int | None = None, base: float = 1.0, each: float = 0.0) -> ContinuousBatch[str]:
    return ContinuousBatch(num_slots=slots, step_seconds=base, step_seconds_per_request=each)


def test_without_a_limit_nobody_waits() -> None:
    b = batch()
    b.add("long", 10)
    assert b.work(4.0) == []
    b.add("short", 2)
    assert b.seconds_to_next() == 2.0
    assert b.work(2.0) == [("short", 4.0)]
    assert b.work(100.0) == [("long", 0.0)] and b.seconds_to_next() is None and b.steps == 10.0


def test_a_step_takes_longer_the_more_run() -> None:
    b = batch(base=1.0, each=0.5)
    b.add("a", 4)
    b.add("b", 2)  # a step of two takes 2 s, of one 1.5 s
    assert b.seconds_to_next() == 4.0
    assert b.work(4.0 + 3.0) == [("b", 0.0), ("a", 0.0)]


def test_beyond_the_slots_they_wait_in_their_order_and_start_on_time() -> None:
    b = batch(slots=2)
    for name, tokens in (("a", 3), ("b", 5), ("c", 1), ("d", 1)):
        b.add(name, tokens)
    assert b.num_running == 2
    # however late it is asked: c began when a ended, d when c did
    assert b.work(60.0) == [("a", 0.0), ("c", 3.0), ("b", 0.0), ("d", 4.0)]


def test_an_aborted_request_makes_room() -> None:
    b = batch(slots=1)
    for name in ("a", "b", "c"):
        b.add(name, 3)
    b.work(1.0)
    b.remove("b")
    b.remove("a")
    assert b.work(3.0) == [("c", 1.0)] and b.num_running == 0


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.integers(1, 4),
    st.lists(st.floats(0.01, 20.0), min_size=1, max_size=30),
)
def test_work_is_the_same_however_it_is_cut(
    lengths: list[int], slots: int, cuts: list[float]
) -> None:
    """Each token is decoded once, at most `slots` at a time, and the order does not depend on when
    the time is given."""
    whole, cut = batch(slots, 0.25, 0.5), batch(slots, 0.25, 0.5)
    for number, length in enumerate(lengths):
        whole.add(str(number), length)
        cut.add(str(number), length)
    found = [ended for seconds in cuts for ended in cut.work(seconds)]
    found += cut.work(1e6)
    expected = whole.work(1e6)
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [start for _, start in found] == pytest.approx([start for _, start in expected])
    assert sum(lengths) <= slots * whole.steps + 1e-6
