"""The pool's decisions, against engines that are only pretended (the seam is EngineProcess)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from pipeline.core.errors import ConfigError, EngineError, NoRoomError
from stages.engine import leases as leases_module
from stages.engine.pool import SGLangPool
from tests.manual_time import ManualTime


class FakeEngine:
    def __init__(self, number: int) -> None:
        self.endpoint = f"http://127.0.0.1:{30000 + number}"
        self.name = f"engine {number}"
        self.alive = False
        self.on_death: Callable[[str], None] | None = None
        self.answers = True  # health checks
        self.failures: list[Exception] = []  # of the next starts
        self.starts: list[int] = []
        self.probes: list[bool] = []

    async def start(self, weight_version: int, timeout_seconds: float) -> None:
        self.starts.append(weight_version)
        if self.failures:
            raise self.failures.pop(0)
        self.alive = True

    async def healthy(self, *, deep: bool) -> bool:
        self.probes.append(deep)
        return self.alive and self.answers

    async def stop(self) -> None:
        self.alive = False

    def kill(self) -> None:
        self.alive = False

    def log_tail(self) -> str:
        return "the last line"


class Sleeps:
    """Records what would have been slept; does not sleep."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


def make(
    count: int = 2, concurrency: int = 2, restarts: int = 2, version: int = 0
) -> tuple[SGLangPool, list[FakeEngine], ManualTime, Sleeps]:
    engines = [FakeEngine(i) for i in range(count)]
    time, sleeps = ManualTime(), Sleeps()
    pool = SGLangPool(
        engines,
        concurrency=concurrency,
        max_restarts=restarts,
        start_timeout_seconds=1.0,
        initial_version=version,
        time=time,
        sleep=sleeps,
    )
    return pool, engines, time, sleeps


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came about")


class Holder:
    """Leases held by tasks, released by hand, in the order in which they were granted."""

    def __init__(self, pool: SGLangPool) -> None:
        self.pool = pool
        self.granted: list[tuple[str, str]] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.release: dict[str, asyncio.Event] = {}

    async def take(self, name: str, session: str | None = None) -> None:
        self.release[name] = asyncio.Event()

        async def hold() -> None:
            async with self.pool.lease(session) as endpoint:
                self.granted.append((name, endpoint))
                await self.release[name].wait()

        self.tasks[name] = asyncio.create_task(hold())
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def give(self, name: str) -> None:
        self.release[name].set()
        await self.tasks[name]
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def give_all(self) -> None:
        for name in list(self.tasks):
            await self.give(name)


async def test_requests_go_to_the_least_loaded_engine_and_wait_in_order_when_all_are_full() -> None:
    pool, engines, _, _ = make()
    await pool.start()
    held = Holder(pool)
    for name in "abcdef":
        await held.take(name)
    a, b = engines[0].endpoint, engines[1].endpoint
    assert held.granted == [("a", a), ("b", b), ("c", a), ("d", b)]
    assert pool.statistics().num_waiting == 2
    await held.give("d")
    assert held.granted[4:] == [("e", b)]
    await held.give("a")
    assert held.granted[5:] == [("f", a)]
    await held.give_all()
    assert pool.statistics().num_in_flight == (0, 0)


async def test_a_session_returns_to_its_engine_while_that_has_room() -> None:
    pool, engines, _, _ = make(concurrency=1)
    await pool.start()
    held = Holder(pool)
    await held.take("filler")  # engine 0
    await held.take("turn 1", session="s")  # engine 1
    await held.give("turn 1")
    await held.give("filler")
    await held.take("turn 2", session="s")
    # though engine 0 is free and comes first
    assert held.granted[-1] == ("turn 2", engines[1].endpoint)
    await held.take("turn 3", session="s")
    assert held.granted[-1] == ("turn 3", engines[0].endpoint)  # its own is full
    await held.give_all()


async def test_sessions_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "MAX_SESSIONS", 2)
    pool, _, _, _ = make()
    await pool.start()
    for session in ("a", "b", "c"):
        async with pool.lease(session):
            pass
    assert list(pool._leases._sessions) == ["b", "c"]


async def test_a_waiter_that_is_cancelled_gives_back_what_it_was_just_handed() -> None:
    pool, _, _, _ = make(count=1, concurrency=1)
    await pool.start()
    held = Holder(pool)
    await held.take("a")
    await held.take("b")
    await held.take("c")
    held.release["a"].set()
    await held.tasks["a"]  # b was handed the slot and has not run yet
    held.tasks["b"].cancel()
    with pytest.raises(asyncio.CancelledError):
        await held.tasks["b"]
    await until(lambda: held.granted[-1][0] == "c")
    await held.give("c")
    assert pool.statistics().num_in_flight == (0,)


async def test_during_a_push_new_requests_go_elsewhere_or_wait() -> None:
    pool, engines, _, _ = make()
    await pool.start()
    held = Holder(pool)
    a, b = engines[0].endpoint, engines[1].endpoint
    pool.begin_push(a)
    for name in "xyz":
        await held.take(name)
    assert held.granted == [("x", b), ("y", b)]
    pool.end_push(a, 7)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert held.granted[2:] == [("z", a)]
    assert (pool.version_of(a), pool.version_of(b)) == (7, 0)
    pool.begin_push(b)
    pool.end_push(b, None)
    assert pool.version_of(b) == 0
    await held.give_all()


async def test_a_dead_engine_is_restarted_and_gets_the_current_weights_before_requests() -> None:
    pool, engines, _, sleeps = make(version=3)
    await pool.start()
    a, b = engines[0].endpoint, engines[1].endpoint
    pool.end_push(a, 5)
    resync = asyncio.Event()
    resynced: list[str] = []

    async def on_restart(endpoint: str) -> None:
        resynced.append(endpoint)
        await resync.wait()
        pool.end_push(endpoint, 5)

    pool.on_restart = on_restart
    told: list[tuple[str, str]] = []
    pool.on_event = lambda event, endpoint, reason: told.append((event, endpoint))
    engines[0].alive = False
    await pool.report_failure(a, ConnectionError("reset"))
    assert not pool.is_up(a)
    assert told == [("death", a)]
    await until(lambda: resynced == [a])
    assert engines[0].starts == [3, 3]  # the label is that of the checkpoint it loads
    held = Holder(pool)
    for name in "xyz":
        await held.take(name)
    assert held.granted == [("x", b), ("y", b)]  # not yet
    resync.set()
    await until(lambda: len(held.granted) == 3)
    assert held.granted[2] == ("z", a)
    assert pool.version_of(a) == 5
    assert (pool.statistics().num_restarts, sleeps.seconds) == (1, [1.0])
    assert told == [("death", a), ("restart", a)]
    await held.give_all()


async def test_an_engine_that_answers_is_left_alone_and_a_paused_one_is_not_asked_to_generate() -> (
    None
):
    pool, engines, _, _ = make(count=1)
    await pool.start()
    endpoint = engines[0].endpoint
    await pool.report_failure(endpoint, ConnectionError("one request"))
    await pool.report_failure(endpoint, TimeoutError())
    pool.begin_push(endpoint)
    await pool.report_failure(endpoint, TimeoutError())
    assert engines[0].probes == [False, True, False]
    assert engines[0].starts == [0]


async def test_a_hanging_engine_is_restarted_once_however_many_requests_report_it() -> None:
    pool, engines, _, _ = make(count=1)
    await pool.start()
    engines[0].answers = False
    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(pool.report_failure(engines[0].endpoint, TimeoutError()))
    assert await pool.settled(engines[0].endpoint)
    assert (engines[0].starts, len(engines[0].probes)) == ([0, 0], 1)


async def test_restarts_are_bounded_and_the_last_engine_to_go_fails_all_who_wait() -> None:
    pool, engines, _, sleeps = make(count=1, concurrency=1, restarts=2)
    await pool.start()
    endpoint = engines[0].endpoint
    engines[0].failures = [EngineError("no memory"), EngineError("still no memory")]
    engines[0].alive = False
    held = Holder(pool)
    await held.take("in flight")
    await held.take("waits")
    await pool.report_failure(endpoint, ConnectionError("reset"))
    assert not await pool.settled(endpoint)
    with pytest.raises(EngineError, match="still no memory"):
        await held.tasks["waits"]
    await held.give("in flight")
    with pytest.raises(
        EngineError, match=r"engine 0 is given up after 2 restarts \(--engine-restarts 2\)"
    ):
        async with pool.lease():
            pass
    assert sleeps.seconds == [1.0, 2.0]


async def test_only_restarts_that_fail_make_the_next_one_wait_longer_and_never_without_end() -> (
    None
):
    pool, engines, _, sleeps = make(restarts=20)
    await pool.start()
    for _ in range(9):  # it comes back every time
        pool.condemn(engines[0].endpoint, "a test")
        assert await pool.settled(engines[0].endpoint)
    assert sleeps.seconds == [1.0] * 9
    engines[0].failures = [EngineError("no memory")] * 7
    pool.condemn(engines[0].endpoint, "a test")
    assert await pool.settled(engines[0].endpoint)
    assert sleeps.seconds[9:] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


async def test_a_lost_engine_does_not_take_the_others_with_it() -> None:
    pool, engines, _, _ = make(restarts=0)
    await pool.start()
    engines[0].alive = False
    await pool.report_failure(engines[0].endpoint, ConnectionError("reset"))
    assert not await pool.settled(engines[0].endpoint)
    async with pool.lease() as endpoint:
        assert endpoint == engines[1].endpoint
    assert pool.statistics().num_healthy == 1


async def test_a_resync_that_fails_counts_as_a_failed_restart() -> None:
    pool, engines, _, _ = make(count=1, restarts=2)
    await pool.start()
    outcomes = [EngineError("no weights"), None]

    async def on_restart(endpoint: str) -> None:
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    pool.on_restart = on_restart
    pool.condemn(engines[0].endpoint, "a test")
    assert await pool.settled(engines[0].endpoint)
    assert (pool.statistics().num_restarts, outcomes) == (2, [])


async def test_a_failed_start_ends_the_others_and_raises_the_engines_own_error() -> None:
    pool, engines, _, _ = make()
    engines[1].failures = [EngineError("engine 1 ended with exit code 1")]
    with pytest.raises(EngineError, match="engine 1 ended with exit code 1"):
        await pool.start()
    assert not any(engine.alive for engine in engines)


async def test_close_ends_engines_restarts_and_waiters() -> None:
    pool, engines, _, _ = make(count=1, concurrency=1)
    await pool.start()
    never = asyncio.Event()

    async def on_restart(_: str) -> None:
        await never.wait()

    pool.on_restart = on_restart
    pool.condemn(engines[0].endpoint, "a test")
    held = Holder(pool)
    await held.take("waits")
    await pool.close()
    with pytest.raises(EngineError, match="was closed"):
        await held.tasks["waits"]
    assert not engines[0].alive
    await pool.close()


async def test_idle_seconds_count_the_time_without_any_request() -> None:
    pool, _, time, _ = make()
    await pool.start()
    time.advance(2.0)
    async with pool.lease():
        time.advance(3.0)
        async with pool.lease(), pool.lease():
            time.advance(4.0)
    time.advance(1.0)
    assert pool.idle_seconds() == (3.0, 6.0)


async def test_two_engines_at_one_address_are_refused() -> None:
    with pytest.raises(ConfigError, match="--sglang-port"):
        SGLangPool(
            [FakeEngine(1), FakeEngine(1)], concurrency=1, max_restarts=1, start_timeout_seconds=1.0
        )


async def test_an_engine_without_room_waits_for_it_while_others_serve() -> None:
    pool, engines, _, sleeps = make(restarts=2)
    told: list[tuple[str, str]] = []
    pool.on_event = lambda event, endpoint, _: told.append((event, endpoint))
    await pool.start()
    endpoint = engines[0].endpoint
    engines[0].failures = [NoRoomError("no node has room")] * 9
    pool.condemn(endpoint, "its node is gone")
    await until(lambda: len(engines[0].failures) == 4)
    async with pool.lease() as leased:
        assert leased == engines[1].endpoint
    assert pool._slots[endpoint].state == "waiting for room"
    assert await pool.settled(endpoint)  # there is room now
    assert [event for event, _ in told] == ["death", "no_room", "restart"]
    assert pool.statistics().num_restarts == 1
    assert sleeps.seconds == [1.0, 2.0, 4.0, *[5.0] * 7]


async def test_engines_that_all_lack_room_are_given_up() -> None:
    pool, engines, _, _ = make(restarts=2)
    await pool.start()
    for engine in engines:
        engine.failures = [NoRoomError("no node has room")] * 100
        pool.condemn(engine.endpoint, "its node is gone")
    assert not await pool.settled(engines[1].endpoint)
    assert not await pool.settled(engines[0].endpoint)
    with pytest.raises(EngineError, match="no node has room"):
        async with pool.lease():
            pass
