"""The user's wish to end: once is an orderly end, twice is at once, the same signal told twice is
once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from pipeline.run.shutdown import SAME_SIGNAL_SECONDS, Stop, StopRequested


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.killed = 0
        self.left: list[int] = []
        self.stop = Stop(self._kill, leave=self.left.append, now=lambda: self.now)

    def _kill(self) -> None:
        self.killed += 1


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
    for _ in range(1000):
        if world.left:
            break
        await asyncio.sleep(0)
    assert (world.killed, world.left) == (1, [128 + signal.SIGINT])


async def test_an_error_of_what_was_waited_for_comes_out(world: World) -> None:
    async def fails() -> None:
        raise RuntimeError("its own")

    with pytest.raises(RuntimeError, match="its own"):
        await world.stop.or_result(fails)


async def until_requested(world: World) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):
        if world.stop.requested:
            return
        await asyncio.sleep(0)
    raise AssertionError("the signal did not arrive")
