"""Pushes beside the learner's loop: what waits for whom, and how a failure ends the run."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from pipeline.core.errors import WeightSyncError
from pipeline.core.types import PushResult
from pipeline.run.pushes import Pushes
from pipeline.run.runner import leaves
from pipeline.run.watchdog import Watchdog
from pipeline.schedule.clock import RolloutClock
from tests.manual_time import ManualTime


class FakeTransport:
    """Staging takes a second; delivering lasts until the test says so."""

    def __init__(self, time: ManualTime) -> None:
        self.time = time
        self.staged: list[int] = []
        self.confirmed = asyncio.Event()
        self.error: Exception | None = None
        self.copies = True

    async def stage(self, policy_version: int) -> bool:
        self.time.advance(1.0)
        self.staged.append(policy_version)
        return self.copies

    async def deliver(self) -> PushResult:
        await self.confirmed.wait()
        self.confirmed.clear()
        if self.error is not None:
            raise self.error
        return PushResult(
            policy_version=self.staged[-1],
            seconds=9.0,
            stall_seconds=0.5,
            num_bytes=1,
            num_engines=2,
        )

    async def close(self) -> None: ...


class FakeRecorder:
    def __init__(self, time: ManualTime) -> None:
        self.time = time
        self.recorded: list[tuple[int, PushResult]] = []

    @property
    def wall_seconds(self) -> float:
        return self.time.now()

    def trainer_busy(self) -> AbstractContextManager[None]:
        return nullcontext()

    def pushed(self, rollout_id: int, result: PushResult) -> None:
        self.recorded.append((rollout_id, result))


class World:
    def __init__(self, *, overlap: bool = True) -> None:
        time = ManualTime()
        self.time, self.transport, self.recorder = time, FakeTransport(time), FakeRecorder(time)
        self.clock = RolloutClock(
            rollout_batch_size=1, async_buffer_size=3, update_weights_interval=1, num_rollout=9
        )
        self.told: list[int] = []
        buffer: Any = type(
            "Buffer", (), {"pushing": lambda _, version: self.told.append(version)}
        )()
        self.watchdog = Watchdog(time)
        self.pushes = Pushes(
            transport=self.transport,
            clock=self.clock,
            buffer=buffer,
            recorder=self.recorder,  # type: ignore[arg-type]
            watchdog=self.watchdog,
            overlap=overlap,
        )

    def train(self, rollout_id: int) -> None:
        while self.clock.may_admit():
            self.clock.admit()
        self.clock.consume(rollout_id, [next(iter(self.clock.outstanding))])
        self.clock.trained(rollout_id)


async def test_the_learner_goes_on_and_the_rollout_is_released_when_engines_confirm() -> None:
    world = World()
    async with asyncio.TaskGroup() as beside:
        world.train(0)
        assert await world.pushes.push(0, beside) is None
        assert world.transport.staged == [1] == world.told
        world.train(1)  # while the push is under way
        assert (world.clock.policy_version, world.clock.released) == (0, 0)
        second = asyncio.create_task(world.pushes.push(1, beside))
        await asyncio.sleep(0)
        assert world.transport.staged == [1], "staged before the push before was through"
        assert [a.number for a in world.watchdog.under_way("push")] == [0]
        world.time.advance(5.0)
        world.transport.confirmed.set()
        assert await second is None
        assert (world.clock.policy_version, world.clock.released) == (1, 1)
        assert world.transport.staged == [1, 2]
        world.transport.confirmed.set()
        await world.pushes.through()
    assert world.pushes.under_way is None and world.clock.released == 2
    (first, one), (then, two) = world.recorder.recorded
    assert (first, one.policy_version, one.trainer_seconds) == (0, 1, 1.0)
    # it stood still until the first was through, and for its own staging
    assert (then, two.policy_version, two.trainer_seconds, two.seconds) == (1, 2, 6.0, 9.0)


@pytest.mark.parametrize(("overlap", "copies"), [(False, True), (True, False)])
async def test_without_overlap_or_a_copy_the_loop_waits_for_the_whole_push(
    overlap: bool, copies: bool
) -> None:
    world = World(overlap=overlap)
    world.transport.copies = copies
    async with asyncio.TaskGroup() as beside:
        world.train(0)
        push = asyncio.create_task(world.pushes.push(0, beside))
        await asyncio.sleep(0)
        assert world.transport.staged == [1] and not push.done()
        world.time.advance(2.0)
        world.transport.confirmed.set()
        pushed = await push
    assert pushed is not None and pushed.trainer_seconds == 3.0
    assert world.clock.released == 1 and not world.recorder.recorded


async def test_no_push_where_none_is_due() -> None:
    world = World()
    world.clock.interval = 2
    async with asyncio.TaskGroup() as beside:
        assert await world.pushes.push(0, beside) is None
        await world.pushes.through()
    assert not world.transport.staged


@pytest.mark.parametrize("waits", ["for the push", "for something else"])
async def test_a_failure_ends_the_loop_with_that_error_alone(waits: str) -> None:
    world = World()
    world.transport.error = WeightSyncError("http://a did not confirm")
    never, went_on = asyncio.Event(), False
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as beside:
            beside.create_task(never.wait())  # as the producer: there to the end
            world.train(0)
            await world.pushes.push(0, beside)
            world.transport.confirmed.set()
            await (world.pushes.through() if waits == "for the push" else never.wait())
            went_on = True
    assert leaves(caught.value) == [world.transport.error] and not went_on
    assert world.clock.released == 0 and not world.recorder.recorded
    await asyncio.sleep(0)  # no cancellation is left over
