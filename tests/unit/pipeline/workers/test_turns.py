"""Who has the devices when: learner and engines take turns, and requests in flight are waited
for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from pipeline.core.errors import LearnerError, LearnerLostError
from pipeline.core.types import StepResult
from pipeline.workers.turns import TurnTaking
from stages.engine.memory import EngineMemory
from stages.engine.pool import SGLangPool
from tests.manual_time import ManualTime
from tests.unit.stages.engine.test_pool import FakeEngine


class Both:
    """Learner and engines that write down what happens."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.log: list[str] = []
        self.time = ManualTime()
        self._refuses = refuses

    def __getattr__(self, name: str) -> Any:
        async def note(*_: Any) -> StepResult:
            self.log.append(name)
            self.time.advance(1.0)
            if name == "step" and self._refuses:
                raise LearnerError("not finite")
            return StepResult(metrics={"loss": 0.5})

        return note


def turns(both: Any, *, train: bool = True, rollout: bool = True) -> TurnTaking:
    return TurnTaking(
        both, leaves=both if train else None, engines=both if rollout else None, time=both.time
    )


async def test_a_learner_that_is_lost_in_its_turn_leaves_engines_at_work() -> None:
    """It cannot leave its devices any more, and need not: they are free."""
    both = Both()

    async def dies(*_: Any) -> None:
        raise LearnerLostError("rank 0 died")

    both.step = dies
    both.offload = dies
    with pytest.raises(LearnerLostError, match="rank 0 died"):
        await turns(both).step(None)  # type: ignore[arg-type]
    assert both.log == ["release", "onload", "resume"]


async def test_a_step_and_a_save_are_turns() -> None:
    both = Both()
    result = await turns(both).step(None)  # type: ignore[arg-type]
    assert both.log == ["release", "onload", "step", "offload", "resume"]
    assert result.metrics == {"loss": 0.5, "turn_seconds": 4.0}
    both.log.clear()
    await turns(both).save(Path("x"), None)
    assert both.log == ["release", "onload", "save", "offload", "resume"]


@pytest.mark.parametrize(
    ("options", "log"),
    [
        ({"rollout": False}, ["onload", "step", "offload"]),
        ({"train": False}, ["release", "step", "resume"]),
    ],
)
async def test_one_side_may_stay(options: dict[str, bool], log: list[str]) -> None:
    both = Both()
    await turns(both, **options).step(None)  # type: ignore[arg-type]
    assert both.log == log


async def test_a_refused_step_gives_the_devices_back_too() -> None:
    both = Both(refuses=True)
    with pytest.raises(LearnerError, match="not finite"):
        await turns(both).step(None)  # type: ignore[arg-type]
    assert both.log == ["release", "onload", "step", "offload", "resume"]


class Servers:
    """Two HTTP servers that know SGLang's three endpoints, and a pool over them."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str]] = []
        self.first_call = asyncio.Event()
        self.refuses: set[int] = set()
        self.busy: set[int] = set()
        self.servers: list[TestServer] = []

    async def __aenter__(self) -> SGLangPool:
        engines = []
        for number in range(2):
            app = web.Application()
            for path in ("flush_cache", "release_memory_occupation", "resume_memory_occupation"):
                app.router.add_post(f"/{path}", self._answer(number, path.split("_")[0]))
            server = TestServer(app)
            await server.start_server()
            self.servers.append(server)
            engine = FakeEngine(number)
            engine.endpoint = str(server.make_url("")).rstrip("/")
            engines.append(engine)
        self.pool = SGLangPool(
            engines, concurrency=4, max_restarts=0, start_timeout_seconds=1.0, time=ManualTime()
        )
        await self.pool.start()
        return self.pool

    def _answer(self, number: int, what: str) -> Any:
        async def handler(request: web.Request) -> web.Response:
            tags = (await request.json()).get("tags")
            self.calls.append((number, f"{what} {' '.join(tags)}" if tags else what))
            if what == "flush":
                assert float(request.query["timeout"]) > 0  # it waits until it is idle
                return web.Response(status=400 if number in self.busy else 200, text="busy")
            self.first_call.set()
            return web.Response(status=500 if number in self.refuses else 200, text="no")

        return handler

    async def __aexit__(self, *_: object) -> None:
        await self.pool.close()
        for server in self.servers:
            await server.close()


async def test_engines_give_their_memory_up_when_they_are_idle() -> None:
    servers = Servers()
    async with servers as pool:
        memory, held = EngineMemory(pool), pool.lease()
        await held.__aenter__()
        release = asyncio.create_task(memory.release())
        await servers.first_call.wait()
        # the other still answers a request
        assert servers.calls == [(1, "flush"), (1, "release")] and not release.done()
        await held.__aexit__(None, None, None)
        await release
        late = asyncio.create_task(_leased(pool))
        for _ in range(5):
            await asyncio.sleep(0)
        assert servers.calls[2:] == [(0, "flush"), (0, "release")] and not late.done()
        await memory.resume()
        await late
        assert sorted(servers.calls[4:]) == [(0, "resume"), (1, "resume")]
        assert pool.statistics().num_in_flight == (0, 0)


async def test_an_engine_that_will_not_is_ended() -> None:
    servers = Servers()
    servers.refuses = {0}
    async with servers as pool:
        memory = EngineMemory(pool)
        await memory.release()
        assert not pool.is_up(pool.endpoints[0]) and pool.is_up(pool.endpoints[1])
        await memory.resume()
        assert servers.calls.count((0, "resume")) == 0 and servers.calls.count((1, "resume")) == 1


async def test_one_that_is_not_idle_is_not_told_to_release() -> None:
    """SGLang asserts that it is, in the scheduler, which dies of it."""
    servers = Servers()
    servers.busy = {0}
    async with servers as pool:
        memory = EngineMemory(pool)
        await memory.release()
        assert not pool.is_up(pool.endpoints[0]) and pool.is_up(pool.endpoints[1])
        assert (0, "release") not in servers.calls and (1, "release") in servers.calls


async def test_a_push_finds_room_where_the_attention_cache_was() -> None:
    servers = Servers()
    async with servers as pool:
        memory = EngineMemory(pool)
        async with memory.room():
            late = asyncio.create_task(_leased(pool))
            await asyncio.sleep(0)
            assert sorted(servers.calls[2:]) == [(0, "release kv_cache"), (1, "release kv_cache")]
        await late
        assert sorted(servers.calls[4:]) == [(0, "resume kv_cache"), (1, "resume kv_cache")]
        await memory.release()
        await memory.resume()
        assert sorted(servers.calls[-2:]) == [(0, "resume"), (1, "resume")]


async def _leased(pool: Any) -> SimpleNamespace:
    async with pool.lease() as endpoint:
        return SimpleNamespace(endpoint=endpoint)
