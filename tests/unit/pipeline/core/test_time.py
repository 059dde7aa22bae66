"""Injected time and the accounting built on it."""

from __future__ import annotations

import pytest

from pipeline.core.time import IdleMeter, MonotonicTime
from tests.manual_time import ManualTime


def test_idle_is_the_time_in_which_nobody_is_busy() -> None:
    time = ManualTime(5.0)
    meter = IdleMeter(time)
    time.advance(1.0)
    with meter.busy():
        time.advance(2.0)
        with meter.busy():
            time.advance(4.0)
        time.advance(1.0)
    time.advance(2.0)
    assert meter.idle_seconds == 3.0
    assert meter.lap() == 0.3


def test_a_failure_ends_the_busy_time_too() -> None:
    time = ManualTime()
    meter = IdleMeter(time)
    with pytest.raises(RuntimeError), meter.busy():
        time.advance(1.0)
        raise RuntimeError
    time.advance(1.0)
    assert meter.idle_seconds == 1.0


def test_laps_share_nothing() -> None:
    time = ManualTime()
    meter = IdleMeter(time)
    assert meter.lap() == 0.0, "no time has passed"
    time.advance(3.0)
    assert meter.lap() == 1.0
    with meter.busy():
        time.advance(1.0)
        assert meter.lap() == 0.0
        time.advance(1.0)
    time.advance(3.0)
    assert meter.lap() == 0.75


def test_time_does_not_go_back() -> None:
    with pytest.raises(AssertionError):
        ManualTime().advance(-1.0)
    time = MonotonicTime()
    assert time.now() <= time.now()
