"""A push and engines that are being started again, by a recorded order of events: a real pool, and
engines and weights that are fakes at their seams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import ClusterConfig
from pipeline.core.errors import WeightSyncError
from stages.engine.pool import SGLangPool
from stages.publish.rolling import RollingTransport
from stages.publish.turn import Turn
from tests.unit.stages.publish.fakes import no_sleep

BUCKETS = 2


@dataclass(eq=False)
class World:
    """What engines hold, what happened, and what is to go wrong."""

    events: list[str] = field(default_factory=list)
    # the how-manieth call of an engine's control is its end
    ends: dict[int, Callable[[Engine], None]] = field(default_factory=dict)
    calls: int = 0
    released: int = 0  # what every engine that works has at least


class Engine:
    """`EngineProcess` and its control: weights are a version a bucket."""

    def __init__(self, number: int, world: World) -> None:
        self.name = f"engine {number}"
        self.endpoint = f"http://engine-{number}"
        self.world = world
        self.alive = False
        self.on_death: Callable[[str], None] | None = None
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.weights = [0] * BUCKETS
        self.label = 0
        self.paused = self.updating = False

    async def start(self, weight_version: int, timeout_seconds: float) -> None:
        await self.may_start.wait()
        self.weights, self.label = [weight_version] * BUCKETS, weight_version
        self.alive, self.paused, self.updating = True, False, False
        self.world.events.append(f"{self.name} starts")

    async def healthy(self, *, deep: bool) -> bool:
        return self.alive

    async def stop(self) -> None:
        self.alive = False

    def kill(self) -> None:
        self.alive = False

    def log_tail(self) -> str:
        return ""

    def die(self) -> None:
        self.alive = False
        if self.on_death is not None:
            self.on_death("was killed")

    async def answer(self) -> None:
        await asyncio.sleep(0)
        self.world.calls += 1
        self.world.ends.pop(self.world.calls, Engine._goes_on)(self)
        if not self.alive:
            raise WeightSyncError(f"{self.endpoint} gave no answer")

    def _goes_on(self) -> None: ...


class Control:
    """`EngineControl`."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.endpoint = engine, engine.endpoint

    def __getattr__(self, name: str) -> Callable[..., Awaitable[None]]:
        async def answered(*_: Any) -> None:
            await self.engine.answer()

        return answered  # flush_cache

    async def begin_update(self) -> None:
        await self.engine.answer()
        if not self.engine.paused:  # it was started again meanwhile
            raise WeightSyncError(f"{self.endpoint} refuses: it is not paused")
        self.engine.updating = True

    async def end_update(self) -> None:
        await self.engine.answer()
        self.engine.updating = False

    async def pause(self, mode: str) -> None:
        await self.engine.answer()
        self.engine.paused = True

    async def resume(self) -> None:
        await self.engine.answer()
        self.engine.paused = False

    async def version(self) -> int:
        await self.engine.answer()
        return self.engine.label

    async def put(self, bucket: int, version: int) -> None:
        await self.engine.answer()
        if not self.engine.updating:
            raise WeightSyncError(f"{self.endpoint} refuses: no update has begun")
        assert self.engine.paused, "weights are replaced under a running engine"
        self.engine.weights[bucket] = self.engine.label = version


class Transport(RollingTransport):
    def __init__(self, pool: SGLangPool, engines: Sequence[Engine], fraction: float) -> None:
        super().__init__(pool, ClusterConfig(push_wave_fraction=fraction), sleep=no_sleep)
        self._engines = {engine.endpoint: engine for engine in engines}

    def _control(self, endpoint: str) -> Any:
        return Control(self._engines[endpoint])

    async def _stage(self, version: int) -> int:
        await asyncio.sleep(0)
        return 0

    async def _load(self, team: Sequence[Turn], version: int) -> None:
        for turn in team:
            control: Any = turn.control
            try:
                await turn.open()
                turn.mixed = True
                for bucket in range(BUCKETS):
                    await control.put(bucket, version)
                await turn.close()
            except WeightSyncError as error:
                turn.error = error


@asynccontextmanager
async def pool_of(
    count: int, fraction: float = 0.5
) -> AsyncIterator[tuple[Transport, SGLangPool, list[Engine], World]]:
    world = World()
    engines = [Engine(i, world) for i in range(count)]
    pool = SGLangPool(
        engines, concurrency=4, max_restarts=100, start_timeout_seconds=1.0, sleep=no_sleep
    )
    transport = Transport(pool, engines, fraction)
    pool.on_event = lambda event, endpoint, _: world.events.append(f"{event} {endpoint[-1]}")
    await pool.start()
    world.events.clear()
    try:
        yield transport, pool, engines, world
    finally:
        for engine in engines:
            engine.may_start.set()
        await pool.close()


def check(pool: SGLangPool, engines: Sequence[Engine], world: World) -> None:
    """Engines that requests may go to hold weights of one version, the one they say, and none that
    is older than what was released."""
    for engine in engines:
        if pool._slots[engine.endpoint].is_open and engine.alive and not engine.paused:
            assert set(engine.weights) == {pool.version_of(engine.endpoint)}, engine.name
            assert engine.weights[0] >= world.released, engine.name
    assert min(map(pool.version_of, pool.endpoints)) >= world.released


async def test_a_push_does_not_wait_for_an_engine_that_is_being_started_again() -> None:
    async with pool_of(3) as (transport, pool, engines, world):
        engines[1].may_start.clear()
        engines[1].die()
        result = await asyncio.wait_for(transport.push(1), 10)
        assert (result.policy_version, result.num_engines) == (1, 2)
        world.released = 1
        world.events.append("released 1")
        check(pool, engines, world)
        async with pool.lease(), pool.lease(), pool.lease():  # the one that is down is given none
            assert not pool._slots[engines[1].endpoint].in_flight

        engines[1].may_start.set()
        assert await pool.settled(engines[1].endpoint)
        assert engines[1].weights == [1, 1] and pool.version_of(engines[1].endpoint) == 1
        check(pool, engines, world)
    assert world.events[:4] == ["death 1", "released 1", "engine 1 starts", "restart 1"]


async def test_an_engine_that_dies_in_its_turn_is_not_waited_for() -> None:
    async with pool_of(2) as (transport, pool, engines, world):
        engines[0].may_start.clear()
        world.ends[4] = Engine.die  # pause, the first bucket, the second ...
        assert (await asyncio.wait_for(transport.push(1), 10)).num_engines == 1
        assert [engine.alive for engine in engines].count(True) == 1
        engines[0].may_start.set()
        assert await pool.settled(engines[0].endpoint)
        assert engines[0].weights == [1, 1]


async def test_the_only_engine_is_waited_for() -> None:
    async with pool_of(1) as (transport, _, engines, _):
        engines[0].may_start.clear()
        engines[0].die()
        push = asyncio.create_task(transport.push(1))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not push.done()
        engines[0].may_start.set()
        assert (await asyncio.wait_for(push, 10)).num_engines == 1
        assert engines[0].weights == [1, 1]


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(1, 4),
    fraction=st.sampled_from([0.3, 0.5, 1.0]),
    ends=st.lists(st.integers(1, 120), max_size=8),
    pushes=st.integers(1, 4),
    slow=st.sets(st.integers(0, 3)),
)
def test_no_engine_works_under_older_weights_than_were_released(
    count: int, fraction: float, ends: list[int], pushes: int, slow: set[int]
) -> None:
    """Engines die at any call of a push; slow ones only come back after the last push, unless
    there are no others."""

    async def run() -> None:
        async with pool_of(count, fraction) as (transport, pool, engines, world):
            for call in ends:
                world.ends[call] = Engine.die
            if not slow >= set(range(count)):
                for number in slow & set(range(count)):
                    engines[number].may_start.clear()
            for version in range(1, pushes + 1):
                try:
                    await asyncio.wait_for(transport.push(version), 2)
                except WeightSyncError:  # its attempts were used up: the run ends
                    return
                world.released = version
                check(pool, engines, world)
            world.ends.clear()
            for engine in engines:
                engine.may_start.set()
            for engine in engines:
                assert await pool.settled(engine.endpoint)
            check(pool, engines, world)
            assert all(engine.weights == [pushes] * BUCKETS for engine in engines)

    asyncio.run(run())
