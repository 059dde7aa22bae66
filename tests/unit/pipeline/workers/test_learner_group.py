"""The driver's handle on the ranks, without ranks: who is heard when several fail."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
import ray

from pipeline.core.errors import CheckpointError, LearnerLostError
from pipeline.workers.learner_group import LearnerGroup
from stages.learn.settings import LearnerSettings


class RankError(Exception):
    """As Ray wraps what an actor raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


async def fails(rank: int) -> None:
    raise RankError(CheckpointError(f"rank {rank} has no weights"))


async def test_of_several_failures_one_is_told_and_none_complained_of() -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(said))
    group = LearnerGroup(LearnerSettings())
    with pytest.raises(CheckpointError, match="rank 0 has no weights") as caught:
        await group._results([fails(rank) for rank in range(3)])
    assert caught.value.__notes__ == ["on learner rank 0"]
    del caught
    await asyncio.sleep(0)
    gc.collect()
    assert complaints == []


class Actor:
    """One that is asked where it is: `gone` raises as Ray does, one in a collective hangs."""

    def __init__(self, *, gone: bool) -> None:
        self._gone, self.where = gone, self

    async def remote(self) -> None:
        if self._gone:
            raise ConnectionError("the actor is dead")
        await asyncio.Event().wait()


async def reset_by_peer() -> None:
    raise RankError(RuntimeError("Connection reset by peer"))


async def test_of_a_rank_that_died_and_one_whose_collective_failed_with_it_the_dead_is_told() -> (
    None
):
    """The other's socket may tell it sooner than Ray tells us."""
    group = LearnerGroup(LearnerSettings())
    group._actors = [Actor(gone=False), Actor(gone=True)]
    with pytest.raises(LearnerLostError, match=r"learner rank 1 .*died \(ConnectionError\)"):
        await group._results([reset_by_peer()])
    with pytest.raises(LearnerLostError, match="rank 1 failed earlier"):
        group._check_usable()
    assert not ray.is_initialized(), "to kill an actor Ray was started"


async def test_what_failed_on_a_rank_is_told_where_all_are_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.workers.learner_group.DEATH_SECONDS", 0.0)
    group = LearnerGroup(LearnerSettings())
    group._actors = [Actor(gone=False), Actor(gone=False)]
    with pytest.raises(LearnerLostError, match=r"rank 0 .*failed: RuntimeError: Connection"):
        await group._results([reset_by_peer()])
