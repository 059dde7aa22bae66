"""The driver's handle on the ranks, without ranks: who is heard when several fail."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from pipeline.core.errors import CheckpointError
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
