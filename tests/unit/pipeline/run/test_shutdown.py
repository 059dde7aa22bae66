"""The user's wish to end: once is an orderly end, twice is at once, the same signal told twice is
once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator

import pytest

from pipeline.run.shutdown import SAME_SIGNAL_SECONDS, Stop, StopRequested


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.killed = 0
        self.left: list[int] = []
        self.gone = threading.Event()
        self.stop = Stop(self._kill, leave=self._leave, now=lambda: self.now, heard_seconds=0.1)

    def _kill(self) -> None:
        self.killed += 1

    def _leave(self, code: int) -> None:
        self.left.append(code)
        self.gone.set()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    world.stop.install()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield world
    world.stop.uninstall()
    for number, handler in before.items():
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else handler)


async def test_a_result_passes_through_while_nobody_wants_to_end(world: World) -> None:
    async def seven() -> int:
        return 7

    assert await world.stop.or_result(seven) == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_wait_and_cancels_what_was_waited_for(
    world: World, number: int
) -> None:
    cancelled = asyncio.Event()
    started = asyncio.Event()

    async def forever() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    waiting = asyncio.create_task(world.stop.or_result(forever))
    await started.wait()
    os.kill(os.getpid(), number)
    with pytest.raises(StopRequested):
        await waiting
    assert cancelled.is_set()
    assert (world.stop.signal_number, world.killed, world.left) == (number, 0, [])


async def test_after_the_wish_no_new_wait_begins(world: World) -> None:
    await until_requested(world)

    async def never_begun() -> None:
        raise AssertionError("it was begun")

    with pytest.raises(StopRequested):
        await world.stop.or_result(never_begun)


async def test_the_same_signal_told_twice_is_one_wish(world: World) -> None:
    await until_requested(world)
    world.now += SAME_SIGNAL_SECONDS / 2
    # as the loop does: whether a handler has run cannot be seen where it does nothing
    world.stop._on_signal(signal.SIGTERM)
    assert (world.killed, world.left) == (0, [])


async def test_a_second_signal_kills_the_children_and_leaves_with_its_number(world: World) -> None:
    await until_requested(world)
    world.now += SAME_SIGNAL_SECONDS
    os.kill(os.getpid(), signal.SIGINT)
    assert await asyncio.to_thread(world.gone.wait, 60)
    assert (world.killed, world.left) == (1, [128 + signal.SIGINT])


async def test_a_blocked_loop_is_left_all_the_same(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop runs nothing from the first signal to the second's end."""
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 60
    while "holds the event loop" not in caplog.text and time.monotonic() < deadline:
        pass
    (told,) = [r.getMessage() for r in caplog.records if "holds the event loop" in r.message]
    assert "test_shutdown.py:" in told and "(test_a_blocked_loop_is_left_all_the_same)" in told
    assert not world.stop.requested
    world.now += SAME_SIGNAL_SECONDS
    os.kill(os.getpid(), signal.SIGTERM)
    assert world.gone.wait(60)
    assert (world.killed, world.left) == (1, [128 + signal.SIGTERM])


async def test_a_child_that_cannot_be_ended_does_not_hold_up_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.shutdown.LEAVE_SECONDS", 0.05)
    ended = threading.Event()
    world.stop._kill_now = ended.wait  # type: ignore[assignment]
    await until_requested(world)
    world.now += SAME_SIGNAL_SECONDS
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.to_thread(world.gone.wait, 60)
    ended.set()


async def test_an_error_of_what_was_waited_for_comes_out(world: World) -> None:
    async def fails() -> None:
        raise RuntimeError("its own")

    with pytest.raises(RuntimeError, match="its own"):
        await world.stop.or_result(fails)


async def until_requested(world: World) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StopRequested):
        await asyncio.wait_for(world.stop.or_result(asyncio.Event().wait), 60)
