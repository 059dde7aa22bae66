"""Engines that come and go while others serve, against engines that are only pretended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from pipeline.core.errors import EngineError
from stages.engine.elastic import ElasticPool
from tests.manual_time import ManualTime
from tests.unit.stages.engine.test_pool import FakeEngine, Holder, until


class SlowEngine(FakeEngine):
    """Starts when it is let."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.let = asyncio.Event()

    async def start(self, weight_version: int, timeout_seconds: float) -> None:
        await self.let.wait()
        await super().start(weight_version, timeout_seconds)


async def started(count: int = 2) -> tuple[ElasticPool, list[FakeEngine]]:
    engines = [FakeEngine(i) for i in range(count)]
    pool = ElasticPool(
        engines,
        concurrency=2,
        max_restarts=2,
        start_timeout_seconds=1.0,
        time=ManualTime(),
        sleep=lambda seconds: asyncio.sleep(0),
    )
    await pool.start()
    return pool, engines


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_that_joins_takes_requests_when_it_has_the_current_weights() -> None:
    pool, (one,) = await started(1)
    told: list[tuple[str, str]] = []
    pool.on_event = lambda event, endpoint, reason: told.append((event, endpoint))
    resync = asyncio.Event()

    async def on_restart(endpoint: str) -> None:
        await resync.wait()
        pool.begin_push(endpoint)
        pool.end_push(endpoint, 9)

    pool.on_restart = on_restart
    pool.end_push(one.endpoint, 9)
    new = SlowEngine(1)
    joining = asyncio.create_task(pool.join(new))
    await turn()
    # no push waits for one that is still being started
    assert pool.endpoints == (one.endpoint,)
    assert [row["state"] for row in pool.rows()] == ["serving", "starting"]
    new.let.set()
    await until(lambda: len(pool.endpoints) == 2)
    held = Holder(pool)
    for name in "abc":
        await held.take(name)
    assert held.granted == [("a", one.endpoint), ("b", one.endpoint)]
    assert pool.version_of(new.endpoint) == 9  # it makes no answer look older than it is
    resync.set()
    await joining
    await turn()
    assert held.granted[2:] == [("c", new.endpoint)]
    assert pool.version_of(new.endpoint) == 9
    assert told == [("start", new.endpoint)] and len(pool.idle_seconds()) == 2
    await held.give_all()


async def test_one_that_cannot_join_leaves_nothing() -> None:
    pool, (one,) = await started(1)
    new = CountedEngine(1)
    new.failures = [EngineError("no memory")]
    with pytest.raises(EngineError, match="no memory"):
        await pool.join(new)
    assert pool.endpoints == (one.endpoint,) and new.stops == 1

    async def on_restart(endpoint: str) -> None:
        raise EngineError("no weights")

    pool.on_restart = on_restart
    with pytest.raises(EngineError, match="no weights"):
        await pool.join(new)
    assert pool.endpoints == (one.endpoint,) and not new.alive
    assert new.stops == 2  # its room is free again
    assert not await pool.settled(new.endpoint)  # a push that waited for it goes on
    with pytest.raises(EngineError, match="in the pool already"):
        await pool.join(FakeEngine(0))


class CountedEngine(FakeEngine):
    stops = 0

    async def stop(self) -> None:
        self.stops += 1
        await super().stop()


async def test_one_that_is_drained_ends_what_it_has_and_is_stopped() -> None:
    pool, (one, two) = await started()
    held, said = Holder(pool), list[str]()
    for name in "ab":
        await held.take(name, session=name)
    leaving = asyncio.create_task(pool.drain(two.endpoint, now=False, says=said.append))
    await turn()
    assert two.alive and said == ["1 requests in flight"]
    assert [row["state"] for row in pool.rows()] == ["serving", "draining"]
    await held.take("c", session="b")  # its own takes nothing new
    assert held.granted[-1] == ("c", one.endpoint)
    with pytest.raises(EngineError, match="drained already"):
        await pool.drain(two.endpoint, now=True)
    with pytest.raises(EngineError, match="last engine"):
        await pool.drain(one.endpoint, now=False)
    await held.give("b")
    await leaving
    assert not two.alive and pool.endpoints == (one.endpoint,)
    assert pool.statistics().num_engines == 1
    await held.give_all()


async def test_with_now_requests_are_not_waited_for_but_a_push_is() -> None:
    pool, (one, two) = await started()
    held = Holder(pool)
    for name in "ab":
        await held.take(name)
    pool.begin_push(two.endpoint)
    leaving = asyncio.create_task(pool.drain(two.endpoint, now=True))
    await turn()
    assert two.alive
    pool.end_push(two.endpoint, 1)
    await leaving
    assert not two.alive
    # whoever had asked it finds out, and reports what nobody need look at
    await pool.report_failure(two.endpoint, ConnectionError("reset"))
    assert two.probes == []
    # a push that began before it left leaves it out
    assert not await pool.settled(two.endpoint) and not pool.is_up(two.endpoint)
    await held.give_all()
    assert one.alive


async def test_whoever_publishes_weights_says_when_one_may_leave() -> None:
    pool, (one, two) = await started()
    asked, may = list[str](), asyncio.Event()

    async def on_leave(endpoint: str, leave: Callable[[], None]) -> None:
        asked.append(endpoint)
        await may.wait()
        leave()

    pool.on_leave = on_leave
    leaving = asyncio.create_task(pool.drain(two.endpoint, now=True))
    await turn()
    assert asked == [two.endpoint] and two.alive and two.endpoint in pool.endpoints
    pool.begin_push(two.endpoint)  # a turn that is held: the learner was lost in it
    may.set()
    await turn()
    assert two.alive and two.endpoint in pool.endpoints
    pool.end_push(two.endpoint, 1)
    await leaving
    assert asked == [two.endpoint] * 2 and not two.alive and pool.endpoints == (one.endpoint,)


async def test_one_that_dies_or_is_being_restarted_leaves_all_the_same() -> None:
    pool, (one, two, three) = await started(3)
    held = Holder(pool)
    for name in "abc":
        await held.take(name)
    leaving = asyncio.create_task(pool.drain(two.endpoint, now=False))
    await turn()
    two.alive = False
    await pool.report_failure(two.endpoint, ConnectionError("reset"))
    assert not await pool.settled(two.endpoint)
    await held.give("b")
    await leaving
    assert two.starts == [0]  # not started again
    never, given_up = asyncio.Event(), list[str]()

    async def on_restart(endpoint: str) -> None:
        try:
            await never.wait()
        except asyncio.CancelledError:
            given_up.append(endpoint)
            raise

    pool.on_restart = on_restart
    pool.condemn(three.endpoint, "a test")
    await until(lambda: three.alive)
    await held.give("c")
    await pool.drain(three.endpoint, now=False)
    assert not three.alive and pool.endpoints == (one.endpoint,)
    assert given_up == [three.endpoint]
    await held.give_all()


async def test_one_may_come_back_to_its_address() -> None:
    pool, (_, two) = await started()
    await pool.drain(two.endpoint, now=False)
    await pool.join(two)
    assert await pool.settled(two.endpoint)
    async with pool.lease(), pool.lease() as endpoint:
        assert endpoint == two.endpoint


async def test_unknown_engines_are_named_with_those_that_are_there() -> None:
    pool, engines = await started()
    with pytest.raises(EngineError, match=f"http://x:1 is not in the pool.*{engines[1].endpoint}"):
        await pool.drain("http://x:1", now=False)


async def test_the_end_of_the_run_ends_those_that_are_joining() -> None:
    pool, _ = await started()
    new = SlowEngine(7)
    joining = asyncio.create_task(pool.join(new))
    await turn()
    new.alive = True
    pool.kill_now()
    assert not new.alive
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
