"""An episode's deadline: what is late ends, says where it stood, and is a failed sample."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine, Generator, Sequence
from typing import Any

import pytest

from pipeline.core.awaits import Place, await_chain, describe, where_it_stands
from pipeline.core.deadline import Deadline, EpisodeTimeoutError, is_late
from pipeline.core.types import Sample, Status

SOON = 0.01


async def never() -> None:
    await asyncio.Event().wait()


async def one_level_up() -> None:
    await never()


async def test_without_a_deadline_work_is_only_awaited() -> None:
    assert await Deadline().within(asyncio.sleep(0, "done")) == "done"


async def test_work_in_time_keeps_its_result_and_its_error() -> None:
    async def fails() -> None:
        raise ValueError("its own")

    assert await Deadline(60.0).within(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="its own"):
        await Deadline(60.0).within(fails())


async def test_late_work_is_cancelled_and_says_flag_and_place() -> None:
    ended = asyncio.Event()

    async def late() -> None:
        try:
            await one_level_up()
        finally:
            ended.set()

    with pytest.raises(EpisodeTimeoutError) as caught:
        await Deadline(SOON, "--eval-episode-timeout-seconds").within(late())
    assert ended.is_set()
    text = str(caught.value)
    assert "0.01 s (--eval-episode-timeout-seconds)" in text
    line = inspect.getsourcelines(never)[1] + 1
    assert f"test_deadline.py:{line} (never)" in text and "(one_level_up)" in text
    assert text.index("(never)") < text.index("(one_level_up)") < text.index("(late)")


async def test_work_that_ignores_its_cancellation_is_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    with pytest.raises(EpisodeTimeoutError):
        await Deadline(SOON).within(stubborn(), grace_seconds=SOON)
    assert "does not end when it is cancelled" in caplog.text and "(stubborn)" in caplog.text
    release.set()


async def test_whoever_is_cancelled_takes_its_work_along() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await never()
        finally:
            ended.set()

    task = asyncio.create_task(Deadline(60.0).within(work()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_a_late_score_fails_the_samples_that_have_none() -> None:
    samples = [Sample(index=i, status=Status.COMPLETED) for i in range(3)]
    samples[2].status, samples[2].error = Status.FAILED, "EngineError: no route"

    async def reward(given: Sequence[Sample]) -> None:
        given[0].reward = 1.0
        await never()

    await Deadline(SOON).score(reward, samples)
    assert samples[0].reward == 1.0 and samples[0].status is Status.COMPLETED
    assert samples[1].status is Status.FAILED and "(never)" in (samples[1].error or "")
    assert [is_late(s) for s in samples] == [False, True, False]


async def test_the_chain_goes_through_groups_of_tasks() -> None:
    async def in_a_group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
            group.create_task(one_level_up())

    async def waits() -> None:
        await asyncio.wait({asyncio.create_task(in_a_group())})

    task = asyncio.create_task(waits())
    for _ in range(5):
        await asyncio.sleep(0)
    functions = [place.function for place in await_chain(task)]
    ours = [f for f in functions if f in ("waits", "in_a_group", "one_level_up", "never")]
    assert ours == ["waits", "in_a_group", "one_level_up", "never"]
    assert "(never)" in where_it_stands(task)
    task.cancel()
    await asyncio.wait({task})
    await asyncio.sleep(0)


async def test_the_chain_goes_through_gather_and_an_awaited_task() -> None:
    async def gathers() -> None:
        await asyncio.gather(asyncio.sleep(0), one_level_up())

    async def awaits_a_task() -> None:
        await asyncio.create_task(gathers())

    task = asyncio.create_task(awaits_a_task())
    for _ in range(5):
        await asyncio.sleep(0)
    functions = [place.function for place in await_chain(task)]
    assert functions[:4] == ["awaits_a_task", "gathers", "one_level_up", "never"]
    task.cancel()
    await asyncio.wait({task})


class ByHand:
    """Drives a coroutine itself, as the guard of reward functions does."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.driven = coroutine

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            while True:
                yield self.driven.send(None)
        except StopIteration:
            return


async def test_the_chain_goes_through_what_is_driven_by_hand() -> None:
    async def work() -> None:
        await ByHand(one_level_up())

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    assert [place.function for place in await_chain(task)][-3:-1] == ["one_level_up", "never"]
    task.cancel()
    await asyncio.wait({task})


def test_of_packages_only_the_innermost_line_is_told() -> None:
    package = "/venv/lib/site-packages/http.py"
    places = [
        Place("/me/push.py", 3, "push"),
        Place("/me/push.py", 9, "deliver", "http://e1"),
        *[Place(package, line, "request") for line in range(5)],
    ]
    assert describe(places) == (
        f"{package}:4 (request), in /me/push.py:9 (deliver, engine http://e1),"
        " in /me/push.py:3 (push)"
    )


async def test_the_engine_that_is_dealt_with_is_named() -> None:
    async def deliver(endpoint: str) -> None:
        await never()

    task = asyncio.create_task(deliver("http://e1"))
    await asyncio.sleep(0)
    assert "(deliver, engine http://e1)" in where_it_stands(task)
    task.cancel()
    await asyncio.wait({task})


def test_a_task_that_has_not_begun_has_no_place() -> None:
    assert describe([]) == "a task that has not begun"
