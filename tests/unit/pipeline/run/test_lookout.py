"""The thread that looks: a silence is told of from the loop, a blocked loop from the thread."""

from __future__ import annotations

import asyncio
import threading

from pipeline.run.lookout import Blocked, Lookout
from pipeline.run.watchdog import Silence, Watchdog
from tests.manual_time import ManualTime

TICK = 0.001


async def test_a_silence_is_reported_on_the_loop() -> None:
    time, reported = ManualTime(), asyncio.Event()
    watchdog, news, threads = Watchdog(time), list[object](), set[int]()

    def report(said: Silence | Blocked) -> None:
        news.append(said)
        threads.add(threading.get_ident())
        reported.set()

    lookout = Lookout(watchdog, report, tick_seconds=TICK)
    lookout.start()
    with watchdog.stage("take"):
        time.advance(30.0)
        async with asyncio.timeout(20):
            await reported.wait()
    lookout.stop()
    assert isinstance(news[0], Silence) and threads == {threading.get_ident()}


async def test_a_blocked_loop_is_reported_with_the_line_that_holds_it() -> None:
    news, reported = list[Silence | Blocked](), threading.Event()

    def report(said: Silence | Blocked) -> None:
        news.append(said)
        reported.set()

    lookout = Lookout(Watchdog(), report, tick_seconds=TICK, blocked_seconds=5 * TICK)
    lookout.start()

    def holds_the_loop() -> None:
        assert reported.wait(20), "the loop is blocked, and nobody says so"

    holds_the_loop()
    lookout.stop()
    assert isinstance(news[0], Blocked) and "(holds_the_loop)" in news[0].where
    assert "await" in str(news[0]) and news[0].record()["stage"] == "blocked"


async def test_a_stopped_lookout_says_nothing() -> None:
    time, news = ManualTime(), list[object]()
    watchdog = Watchdog(time)
    lookout = Lookout(watchdog, news.append, tick_seconds=TICK)
    lookout.start()
    lookout.stop()
    with watchdog.stage("take"):
        time.advance(1000.0)
        for _ in range(10):
            await asyncio.sleep(0)
    assert news == []
