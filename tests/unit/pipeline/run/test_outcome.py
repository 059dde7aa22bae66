"""How a run ends, as its exit code and its last lines say."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.core.errors import ReplayBufferError
from pipeline.run.outcome import NothingToDo, run_to_end


class FakeRunner:
    interrupted_by = None

    def __init__(self) -> None:
        self.num_ended = 0

    def end_now(self) -> None:
        self.num_ended += 1


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_what_the_loop_left_up_is_ended() -> None:
    """SystemExit in a task ends the loop at once: nobody has closed anything."""
    runner: Any = FakeRunner()

    async def leave() -> None:
        raise SystemExit(3)

    async def train(_: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(leave())

    assert run_to_end(train, lambda: runner) == 1
    assert runner.num_ended == 1


def test_the_same_error_of_many_tasks_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    runner: Any = FakeRunner()

    async def train(_: Any) -> None:
        raise ExceptionGroup("tasks", [ReplayBufferError("no room")] * 24)

    assert run_to_end(train, lambda: runner) == 1
    assert capsys.readouterr().err == "ReplayBufferError: no room\n"


def test_nothing_to_do_is_said_and_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    async def train(_: Any) -> None:
        raise AssertionError("there is nothing to train")

    def make() -> Any:
        raise NothingToDo("all is trained")

    assert run_to_end(train, make) == 0
    assert capsys.readouterr() == ("all is trained\n", "")
