"""Which engine `add` makes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.core.errors import ConfigError, EngineError
from pipeline.wiring.membership import Membership
from stages.engine.elastic import ElasticPool
from tests.unit.stages.engine.test_pool import FakeEngine


async def membership(**more: Any) -> tuple[Membership, list[int]]:
    """Two engines of the run's own; index 2 is the teacher's."""
    pool = ElasticPool(
        [FakeEngine(0), FakeEngine(1)], concurrency=1, max_restarts=0, start_timeout_seconds=1.0
    )
    await pool.start()
    made: list[int] = []

    def make(index: int) -> FakeEngine:
        made.append(index)
        return FakeEngine(100 + len(made))

    return Membership(pool, make, **{"take": lambda at: Taken(at), "used": (0, 1, 2), **more}), made


class Taken(FakeEngine):
    def __init__(self, at: str) -> None:
        super().__init__(0)
        self.endpoint = at


async def test_an_index_is_given_again_when_its_engine_has_left() -> None:
    engines, made = await membership()
    await engines.add(None)
    await engines.drain("127.0.0.1:30001", now=False, says=print)
    await engines.add(None)
    await engines.add(None)
    assert made == [3, 1, 4]
    assert len(engines.rows()) == 4


async def test_one_that_could_not_start_does_not_keep_its_index() -> None:
    pool_engines, made = await membership()
    failing = FakeEngine(50)
    failing.failures = [EngineError("no memory")]
    pool_engines._make = lambda index: (made.append(index), failing)[1]
    for _ in range(2):
        failing.failures = [EngineError("no memory")]
        with pytest.raises(EngineError):
            await pool_engines.add(None)
    assert made == [3, 3]


async def test_one_of_somebody_elses_is_taken_by_its_address() -> None:
    engines, made = await membership()
    assert await engines.add("10.0.0.7:30000") == "http://10.0.0.7:30000"
    assert not made and len(engines.rows()) == 3
    await engines.drain("10.0.0.7:30000", now=True, says=print)
    with pytest.raises(ConfigError, match="it has no port"):
        await engines.add("10.0.0.7")


async def test_what_cannot_be_now_is_refused() -> None:
    fixed, made = await membership(why_fixed=lambda: "they share devices")
    with pytest.raises(ConfigError, match="they share devices"):
        await fixed.add(None)
    with pytest.raises(ConfigError, match="they share devices"):
        await fixed.drain("http://127.0.0.1:30001", now=False, says=print)
    early, _ = await membership(why_not_take=lambda: "nothing was pushed")
    with pytest.raises(ConfigError, match="nothing was pushed"):
        await early.add("a:1")
    simulated, _ = await membership(take=None)
    with pytest.raises(ConfigError, match="simulated engines have no addresses"):
        await simulated.add("a:1")
    assert not made
