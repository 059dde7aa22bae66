"""A pool that leases in another process: it does as the owner's pool says, and the owner counts
what it has in flight."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.core.errors import EngineError
from stages.engine.remote_pool import RemotePool
from stages.engine.view import PoolView
from tests.unit.stages.engine.test_pool import Holder, make


class Follower:
    """Both sides in one process: every change reaches the other at once."""

    def __init__(self, pool, concurrency: int = 2) -> None:
        self.remote = RemotePool(concurrency=concurrency)
        pool.elsewhere = self
        self.pool, self.views = pool, []
        self.remote.on_news = self.tell
        self.follow(pool.view())

    def follow(self, view: PoolView) -> None:
        self.views.append(view)
        self.remote.follow(view)

    async def drained(self, endpoint: str) -> None:
        await self.remote.drained(endpoint)

    def tell(self) -> None:
        asyncio.get_running_loop().call_soon(
            lambda: self.pool.count_elsewhere("worker 0", self.remote.in_flight())
        )


async def test_a_push_gates_the_engine_there_and_waits_for_the_requests_there() -> None:
    pool, engines, _, _ = make(count=2)
    await pool.start()
    follower = Follower(pool)
    a, b = (e.endpoint for e in engines)
    held = Holder(follower.remote)
    await held.take("first")
    assert held.granted == [("first", a)]
    assert pool.statistics().num_in_flight == (1, 0)
    pool.begin_push(a)
    await held.take("second")
    await held.take("third")
    assert [e for _, e in held.granted] == [a, b, b]
    drained = asyncio.create_task(pool.drained(a))
    await asyncio.sleep(0)
    assert not drained.done()
    await held.give("first")
    await drained
    pool.end_push(a, 4)
    assert follower.remote.version_of(a) == 4 and follower.remote.version_of(b) == 0
    await held.take("fourth")
    assert held.granted[-1] == ("fourth", a)
    await held.give_all()


async def test_an_engine_that_serves_another_process_is_not_idle() -> None:
    pool, _, time, _ = make(count=1)
    await pool.start()
    follower = Follower(pool)
    time.advance(1.0)
    held = Holder(follower.remote)
    await held.take("a")
    time.advance(5.0)
    await held.give_all()
    time.advance(2.0)
    assert pool.idle_seconds() == (3.0,)


async def test_an_older_view_that_comes_late_changes_nothing() -> None:
    pool, engines, _, _ = make(count=1)
    await pool.start()
    follower = Follower(pool)
    old = pool.view()
    pool.begin_push(engines[0].endpoint)
    pool.end_push(engines[0].endpoint, 7)
    follower.remote.follow(old)
    assert follower.remote.version_of(engines[0].endpoint) == 7


async def test_one_question_asks_for_a_thousand_failures_and_all_wait_for_the_answer() -> None:
    pool, engines, _, _ = make(count=1)
    await pool.start()
    remote = Follower(pool).remote
    endpoint = engines[0].endpoint
    reports = [
        asyncio.create_task(remote.report_failure(endpoint, TimeoutError("30 s")))
        for _ in range(1000)
    ]
    await asyncio.sleep(0)
    (suspicion,) = remote.take_suspicions()
    assert suspicion.endpoint == endpoint and isinstance(suspicion.as_error(), TimeoutError)
    assert not any(r.done() for r in reports)
    remote.checked(endpoint)
    await asyncio.gather(*reports)
    assert remote.take_suspicions() == []


async def test_those_who_wait_hear_that_no_engine_is_left() -> None:
    pool, engines, _, _ = make(count=1, restarts=0)
    await pool.start()
    remote = Follower(pool).remote
    pool.condemn(engines[0].endpoint, "it hangs")
    with pytest.raises(EngineError, match=r"no engine is left.*engine 0 is given up"):
        async with remote.lease():
            pass
