"""The event loop's delay is what a blocking function makes of it."""

from __future__ import annotations

import asyncio
import time

from pipeline.run.loop_lag import LoopLag

TICK = 0.001


async def ticks(lag: LoopLag, number: int) -> None:
    """Until so many were heard in this lap: a tick is due before every one of these sleeps ends."""
    for _ in range(number):
        await asyncio.sleep(2 * TICK)


async def test_what_holds_the_loop_is_its_delay() -> None:
    lag = LoopLag(tick_seconds=TICK)
    lag.start()
    await ticks(lag, 5)
    lag.lap()
    until = time.monotonic() + 0.3
    while time.monotonic() < until:  # a function that computes, and awaits nothing
        pass
    await ticks(lag, 1)
    found = lag.lap()
    assert found["max"] is not None and found["max"] >= 0.3 - TICK
    lag.stop()


async def test_laps_are_by_themselves_and_stopped_is_stopped() -> None:
    lag = LoopLag(tick_seconds=TICK)
    assert lag.lap() == {"p50": None, "p99": None, "max": None}
    lag.start()
    await ticks(lag, 200)
    found = lag.lap()
    assert found["p50"] is not None and found["p99"] is not None and found["max"] is not None
    assert 0.0 <= found["p50"] <= found["p99"] <= found["max"]
    lag.stop()
    lag.lap()
    await asyncio.sleep(5 * TICK)
    assert lag.lap()["max"] is None
