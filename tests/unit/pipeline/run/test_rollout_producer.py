"""The producer of a user's rollout function: groups that were made before they were admitted never
break the bound on staleness."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from buffers.replay_buffer import ReplayBuffer
from configs.schema import AsyncConfig
from pipeline.core.types import Sample, Status, VersionSpan
from pipeline.run.drops import counts_by_kind
from pipeline.run.rollout_producer import RolloutProducer
from pipeline.run.watchdog import Watchdog
from pipeline.schedule.clock import RolloutClock
from tests.unit.pipeline.run.test_producer import FakeReward, FakeSource

FRESH = 2


class Ahead:
    """Has made the groups of its next call when it returns those of this one."""

    def __init__(self, clock: RolloutClock) -> None:
        self.clock, self.made = clock, list[list[Sample]]()

    async def __call__(self, rollout_id: int, num_groups: int) -> list[list[Sample]]:
        while len(self.made) < num_groups + FRESH:
            self.made.append([self._sample()])
        out, self.made = self.made[:num_groups], self.made[num_groups:]
        return out

    def _sample(self) -> Sample:
        sample = Sample(prompt="p", status=Status.COMPLETED)
        sample.tokens = [1]
        span = VersionSpan(self.clock.policy_version, 0, 1)
        sample.append_response_tokens([2], log_probs=[-1.0], spans=[span])
        return sample


@pytest.mark.parametrize(("bound", "given_back"), [(0, 4), (1, 0)])
async def test_groups_made_too_early_are_asked_for_again(
    bound: int, given_back: int, tmp_path: Path
) -> None:
    """Where the bound leaves a version of room, they are taken as they are."""
    clock = RolloutClock(
        rollout_batch_size=FRESH,
        async_buffer_size=0,
        update_weights_interval=1,
        max_staleness=bound,
        num_rollout=3,
    )
    buffer = ReplayBuffer(tmp_path, AsyncConfig(async_buffer_size=0), clock, made_ahead=True)
    producer = RolloutProducer(
        source=FakeSource(),
        make=Ahead(clock),
        reward=FakeReward(),
        buffer=buffer,
        clock=clock,
        watchdog=Watchdog(),
    )
    task = asyncio.create_task(producer.run())
    staleness = []
    async with asyncio.timeout(20):
        for rollout_id in range(3):
            groups = await buffer.take(rollout_id)
            versions = {s.oldest_version() for group in groups for s in group.samples}
            staleness += [clock.staleness(v, rollout_id) for v in versions if v is not None]
            clock.trained(rollout_id)
            clock.pushed()
    task.cancel()
    await asyncio.wait({task})
    buffer.close()
    assert max(staleness) == bound
    assert counts_by_kind(clock.given_back)["groups_removed_stale"] == given_back
