"""Who is awaited, since when, and where it stands: by a time that is moved by hand."""

from __future__ import annotations

import asyncio
import json

from pipeline.run.watchdog import Watchdog
from tests.manual_time import ManualTime


def started() -> tuple[Watchdog, ManualTime]:
    time = ManualTime(1000.0)
    return Watchdog(time), time


async def stands_still() -> None:
    await asyncio.Event().wait()


def test_nothing_is_said_of_half_a_minute() -> None:
    watchdog, time = started()
    with watchdog.stage("take"):
        time.advance(29.9)
        assert watchdog.check() is None
        time.advance(0.1)
        said = watchdog.check()
    assert said is not None and (said.seconds, said.stage, said.num_trained) == (30.0, "take", 0)


def test_slow_rollouts_have_three_of_their_median() -> None:
    watchdog, time = started()
    for seconds in (500.0, 20.0, 20.0, 90.0):  # the first is the start-up's
        time.advance(seconds)
        watchdog.trained()
    assert watchdog.patience_seconds == 60.0
    with watchdog.stage("push"):
        time.advance(59.0)
        assert watchdog.check() is None
        time.advance(1.0)
        said = watchdog.check()
    assert said is not None and said.rollout_seconds == 20.0
    assert "nothing was trained for 1 min 00 s (a rollout takes 20.0 s)" in str(said)


def test_a_silence_is_told_of_again_when_it_is_twice_as_long() -> None:
    watchdog, time = started()
    told = []
    with watchdog.stage("push"):
        for _ in range(250):
            time.advance(1.0)
            if (said := watchdog.check()) is not None:
                told.append(said.seconds)
    assert told == [30.0, 60.0, 120.0, 240.0]
    watchdog.trained()
    with watchdog.stage("push"):
        time.advance(30.0)
        assert watchdog.check() is not None


async def test_a_take_names_the_groups_it_waits_for_oldest_first() -> None:
    watchdog, time = started()

    async def group(number: int, stage: str) -> None:
        with watchdog.beside("group", number, stage):
            await stands_still()

    async def evaluation() -> None:
        with watchdog.beside("evaluation", 0, "evaluate"):
            await stands_still()

    tasks = []
    for number in range(6):
        tasks.append(asyncio.create_task(group(number, "reward" if number == 1 else "generate")))
        await asyncio.sleep(0)
        time.advance(10.0)
    tasks.append(asyncio.create_task(evaluation()))
    await asyncio.sleep(0)
    with watchdog.stage("take"):
        said = watchdog.check()
    assert said is not None
    assert [(a.kind, a.number, a.stage, a.seconds) for a in said.awaited] == [
        ("group", 0, "generate", 60.0),
        ("group", 1, "reward", 50.0),
        ("group", 2, "generate", 40.0),
        ("group", 3, "generate", 30.0),
    ]
    assert all("(stands_still)" in a.where for a in said.awaited)
    assert said.num_awaited == 6 and str(said).endswith("and 2 more")
    assert "group 1: reward for 50.0 s, at " in str(said)
    json.dumps(said.record())

    with watchdog.stage("evaluations"):
        time.advance(60.0)
        said = watchdog.check()
    assert said is not None and [(a.kind, a.number) for a in said.awaited] == [("evaluation", 0)]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    with watchdog.stage("take"):
        time.advance(1000.0)
        said = watchdog.check()
    assert said is not None and said.awaited == (), "who has ended is not awaited"


async def test_a_push_a_start_and_a_close_say_the_line_at_which_they_stand() -> None:
    for stage in ("start", "step", "push", "save", "close"):
        watchdog, time = started()

        async def whole(watchdog: Watchdog = watchdog, stage: str = stage) -> None:
            with watchdog.stage(stage):
                await stands_still()

        task = asyncio.create_task(whole())
        await asyncio.sleep(0)
        time.advance(40.0)
        said = watchdog.check()
        begin = (
            "still starting after 40.0 s, at "
            if stage == "start"
            else f"nothing was trained for 40.0 s: the learner is at '{stage}' for 40.0 s, at "
        )
        assert said is not None and str(said).startswith(begin)
        assert said.where is not None and "(stands_still)" in said.where
        task.cancel()
        await asyncio.wait({task})


def test_outside_every_stage_there_is_nothing_to_say() -> None:
    watchdog, time = started()
    time.advance(1000.0)
    assert watchdog.check() is None
