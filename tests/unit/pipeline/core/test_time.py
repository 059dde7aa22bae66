"""Injected time and the accounting built on it."""

from __future__ import annotations

import pytest

from pipeline.core.time import IdleMeter, ManualTime, MonotonicTime


def test_idle_is_the_time_in_which_nobody_is_busy() -> None:
    clock = ManualTime(5.0)
    meter = IdleMeter(clock)
    clock.advance(1.0)
    with meter.busy():
        clock.advance(2.0)
        with meter.busy():
            clock.advance(4.0)
        clock.advance(1.0)
    clock.advance(2.0)
    assert meter.idle_seconds == 3.0
    assert meter.idle_fraction == 0.3


def test_a_failure_ends_the_busy_time_too() -> None:
    clock = ManualTime()
    meter = IdleMeter(clock)
    with pytest.raises(RuntimeError), meter.busy():
        clock.advance(1.0)
        raise RuntimeError
    clock.advance(1.0)
    assert meter.idle_seconds == 1.0


def test_laps_share_nothing() -> None:
    clock = ManualTime()
    meter = IdleMeter(clock)
    assert meter.lap() == 0.0, "no time has passed"
    clock.advance(3.0)
    assert meter.lap() == 1.0
    with meter.busy():
        clock.advance(1.0)
        assert meter.lap() == 0.0
        clock.advance(1.0)
    clock.advance(3.0)
    assert meter.lap() == 0.75


def test_time_does_not_go_back() -> None:
    with pytest.raises(AssertionError):
        ManualTime().advance(-1.0)
    clock = MonotonicTime()
    assert clock.now() <= clock.now()
