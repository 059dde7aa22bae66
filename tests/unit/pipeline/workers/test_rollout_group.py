"""The driver's side of rollout workers, against actors that are only pretended: who makes which
group, what becomes of those of a dead one."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import ray.exceptions

from pipeline.core.errors import ConfigError, RolloutWorkerError
from pipeline.core.types import Admission, Sample
from pipeline.run.group_maker import MadeGroup
from pipeline.run.lookout import Blocked
from pipeline.run.watchdog import Awaited
from pipeline.workers import rollout_member
from pipeline.workers.rollout_group import RolloutGroup
from pipeline.workers.rollout_messages import BlockedLoop, Broken, Delivery, LogLine, Order, Report
from pipeline.workers.rollout_reports import RolloutReports
from stages.engine.remote_pool import Suspicion
from tests.unit.stages.engine.test_pool import make as make_pool
from tests.unit.stages.engine.test_pool import until

NOTHING: dict[str, int] = {}


class Method:
    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def remote(self, *args: Any) -> Any:
        return asyncio.ensure_future(self._call(*args))

    def options(self, **_: Any) -> Method:
        return self


class FakeActor:
    """A worker by hand: `deliver` and `die` are what the test does to it."""

    def __init__(self, number: int) -> None:
        self.number, self.orders, self.views = number, list[Order](), list[Any]()
        self.asked: list[str] = []
        self._deliveries: asyncio.Queue[Delivery | Exception] = asyncio.Queue()
        for name in ("start", "begin", "collect", "watch", "checked", "drained", "close"):
            setattr(self, name, Method(getattr(self, f"_{name}")))

    def deliver(self, *made: Any, suspicions: Any = (), in_flight: Any = NOTHING) -> None:
        self._deliveries.put_nowait(
            Delivery(made=list(made), in_flight=dict(in_flight), suspicions=list(suspicions))
        )

    def die(self) -> None:
        self._deliveries.put_nowait(ray.exceptions.RayActorError())

    async def _start(self, view: Any) -> tuple[int, str]:
        self.views.append(view)
        return 1000 + self.number, "another host"

    async def _begin(self, orders: bytes, view: Any) -> None:
        self.orders += pickle.loads(orders)
        self.views.append(view)

    async def _collect(self) -> Delivery:
        found = await self._deliveries.get()
        if isinstance(found, Exception):
            raise found
        return found

    async def _watch(self) -> None:
        await asyncio.Event().wait()

    async def _checked(self, endpoint: str, view: Any) -> None:
        self.asked.append(f"checked {endpoint}")

    async def _drained(self, endpoint: str, view: Any) -> None:
        self.asked.append(f"drained {endpoint}")

    async def _close(self) -> None: ...


class World:
    def __init__(
        self, group: RolloutGroup, actors: list[FakeActor], pool: Any, replaced: asyncio.Event
    ) -> None:
        self.group, self.actors, self.pool, self.replaced = group, actors, pool, replaced

    def make(self, index: int, **sample: Any) -> asyncio.Task[MadeGroup]:
        admission = Admission(
            group_index=index, deadline=7, policy_version=index % 3, prompt_index=index
        )
        return asyncio.ensure_future(self.group(admission, [Sample(prompt=str(index), **sample)]))

    def owed(self, number: int) -> list[int]:
        return [order.admission.group_index for order in self.actors[number].orders]


@asynccontextmanager
async def world(
    monkeypatch: pytest.MonkeyPatch, *, workers: int = 2, restarts: int = 3, silent: float = 60.0
) -> AsyncIterator[World]:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "kill", lambda actor: actor.die())
    pool, _, _, _ = make_pool(count=2)
    await pool.start()
    actors, replaced = list[FakeActor](), asyncio.Event()

    def launch(number: int) -> FakeActor:
        actors.append(FakeActor(number))
        if len(actors) > workers:
            replaced.set()
        return actors[-1]

    group = RolloutGroup(
        launch,
        pool,
        num_workers=workers,
        max_restarts=restarts,
        silent_seconds=silent,
        gather_seconds=0.0,
    )
    await group.start()
    try:
        yield World(group, actors, pool, replaced)
    finally:
        await group.close()


def done(index: int) -> tuple[int, MadeGroup]:
    return index, MadeGroup(counts={"samples_generated": index})


async def test_each_group_goes_to_the_worker_that_has_the_fewest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch) as w:
        tasks = [w.make(i) for i in range(5)]
        await until(lambda: len(w.owed(0)) == 3 and len(w.owed(1)) == 2)
        w.actors[0].deliver(done(0), done(2))
        assert (await tasks[2]).counts == {"samples_generated": 2}
        tasks += [w.make(5), w.make(6)]
        await until(lambda: len(w.owed(0)) == 5)
        assert w.owed(0) == [0, 2, 4, 5, 6]
        w.actors[0].deliver(done(4), done(5), done(6))
        w.actors[1].deliver(done(1), done(3))
        await asyncio.gather(*tasks)


async def test_what_a_dead_worker_owed_is_made_by_another_under_its_old_admission(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(monkeypatch) as w:
        tasks = [w.make(i) for i in range(4)]
        await until(lambda: w.owed(0) == [0, 2] and w.owed(1) == [1, 3])
        w.actors[0].deliver(done(0), in_flight={w.pool.endpoints[0]: 3})
        await tasks[0]
        assert sum(w.pool.statistics().num_in_flight) == 3
        first = w.actors[0].orders[1]
        w.actors[0].die()
        await until(lambda: w.owed(1) == [1, 3, 2])
        assert w.actors[1].orders[2] == first  # admission and prompts as they were
        assert sum(w.pool.statistics().num_in_flight) == 0
        assert "(pid 1000) died" in caplog.text and "its 1 group under way" in caplog.text
        w.actors[1].deliver(*map(done, (1, 2, 3)))
        await asyncio.gather(*tasks)
        late = w.make(4)  # the one that was started again takes part
        await until(lambda: len(w.actors) == 3 and w.owed(2) == [4])
        w.actors[2].deliver(done(4))
        await late


async def test_a_worker_that_says_nothing_is_killed_and_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped, or cut off: its process is there, and Ray has not noticed."""
    async with world(monkeypatch, workers=1, silent=0.2) as w:
        task = w.make(0)
        async with asyncio.timeout(20):
            await w.replaced.wait()
        await until(lambda: w.owed(1) == [0])
        w.actors[1].deliver(done(0))
        await task
        assert "has said nothing for 0.2 s" in caplog.text


async def test_groups_wait_for_the_only_worker_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch, workers=1) as w:
        task = w.make(0)
        await until(lambda: w.owed(0) == [0])
        w.actors[0].die()
        await until(lambda: len(w.actors) == 2 and w.owed(1) == [0])
        w.actors[1].deliver(done(0))
        await task


async def test_when_none_is_left_every_group_and_every_later_one_hears_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch, restarts=0) as w:
        tasks = [w.make(0), w.make(1)]
        await until(lambda: w.owed(1) == [1])
        w.actors[0].die()
        await until(lambda: w.owed(1) == [1, 0])
        w.actors[1].die()
        match = r"no rollout worker is left, after 0 restarts \(--rollout-worker-restarts 0\)"
        for task in (*tasks, w.make(2)):
            with pytest.raises(RolloutWorkerError, match=match):
                await task


async def test_what_making_a_group_raised_there_is_raised_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch) as w:
        task = w.make(0)
        await until(lambda: w.owed(0) == [0])
        broken = Broken(
            kind=ConfigError, text="a filter answered 3", notes=("keep.py",), traceback="T"
        )
        w.actors[0].deliver((0, broken))
        with pytest.raises(ConfigError, match="a filter answered 3") as caught:
            await task
        assert caught.value.__notes__ == ["keep.py", "in rollout worker 0:\nT"]


async def test_prompts_that_cannot_be_sent_are_told_of_and_others_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch, workers=1) as w:
        bad = w.make(0, metadata={"judge": lambda: 1})
        with pytest.raises(RolloutWorkerError, match="prompts of group 0 cannot be sent"):
            await bad
        good = w.make(1)
        await until(lambda: w.owed(0) == [1])
        w.actors[0].deliver(done(1))
        await good


async def test_workers_hear_of_a_push_and_are_asked_whether_they_have_drained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch) as w:
        endpoint = w.pool.endpoints[0]
        w.pool.begin_push(endpoint)
        await w.pool.drained(endpoint)
        assert [a.asked for a in w.actors] == [[f"drained {endpoint}"]] * 2
        w.pool.end_push(endpoint, 5)
        for actor in w.actors:
            await until(lambda actor=actor: actor.views[-1].engines[0].version == 5)


async def test_a_suspected_engine_is_looked_at_and_the_worker_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch) as w:
        endpoint = w.pool.endpoints[1]
        w.actors[0].deliver(suspicions=[Suspicion.of(endpoint, TimeoutError("30 s"))])
        await until(lambda: w.actors[0].asked == [f"checked {endpoint}"])
        assert w.actors[1].asked == []


async def test_more_than_one_in_a_thousand_groups_a_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is ordered while a message is under way goes with the next."""
    async with world(monkeypatch, workers=1) as w:
        before = len(w.actors[0].views)
        tasks = [w.make(i) for i in range(1000)]
        await until(lambda: len(w.owed(0)) == 1000)
        assert len(w.actors[0].views) - before <= 3
        w.actors[0].deliver(*map(done, range(1000)))
        await asyncio.gather(*tasks)


def test_reports_keep_the_worst_until_they_are_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    reports, blocked = RolloutReports(), list[Blocked]()
    reports.on_blocked = blocked.append
    stands = Awaited(kind="group", number=9, stage="generate", seconds=3.0, where="mine.py:4")
    line = LogLine(logger="mine", level=30, text="odd", file_only=True, terminal_only=False)
    for worker, late in ((0, 0.5), (1, 0.1)):
        reports.take(
            worker,
            Report(
                lag={"p50": 0.0, "p99": late, "max": None},
                blocked=[BlockedLoop(seconds=6.0, where="mine.py:5")] * worker,
                lines=[line] * worker,
                oldest=[stands] * worker,
            ),
        )
    assert reports.lag() == {"p50": 0.0, "p99": 0.5, "max": None}
    assert reports.lag() == {"p50": None, "p99": None, "max": None}
    assert [b.worker for b in blocked] == [1] and "rollout worker 1 stands still" in str(blocked[0])
    assert reports.standing()[9].where == "mine.py:4, in rollout worker 1"
    assert "odd (rollout worker 1)" in caplog.text
    reports.forget(1)
    assert reports.standing() == {}


def test_a_dead_workers_last_lines_are_in_the_message(tmp_path: Any) -> None:
    log = tmp_path / "w.log"
    log.write_text("\n".join(map(str, range(20))))
    member = rollout_member.Member(0, lambda n: None, lambda: None, lambda *_: None, log)  # type: ignore[arg-type, return-value]
    assert member.last_lines().endswith("  18\n  19")
