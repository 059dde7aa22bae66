"""The replay buffer under random timing: generators, filter, learner and push channel as tasks of
one event loop.

Time is the number of turns that the event loop has made, so a run that needs too many of them is a
deadlock."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from buffers.replay_buffer import ReplayBuffer
from configs.schema import AsyncConfig
from pipeline.core.types import Admission, Group, Sample, VersionSpan
from pipeline.schedule.clock import RolloutClock

MAX_TURNS = 20_000


class Run:
    """One random run; the versions of tokens are read off a simulated engine pool while they are
    made."""

    def __init__(
        self,
        directory: Path,
        P: int,
        K: int,
        N: int,
        slack: int,
        rollouts: int,
        budget: int,
        name: str,
        seed: int,
    ) -> None:
        self.random = random.Random(seed)
        staleness = -(-K // N) + slack
        self.clock = RolloutClock(
            rollout_batch_size=P,
            async_buffer_size=K,
            update_weights_interval=N,
            max_staleness=staleness,
            num_rollout=rollouts,
        )
        config = AsyncConfig(
            buffer_durability="memory",
            buffer_max_bytes=budget,
            buffer_selector=name,
            keep_last_rollouts=0,
        )  # type: ignore[arg-type]
        self.buffer = ReplayBuffer(directory, config, self.clock, max_segment_bytes=10_000)
        self.engines = [0, 0]  # the version of each
        self.seen: dict[int, list[int]] = {}  # rollout -> groups
        self.lost: set[int] = set()
        self.staleness = 0

    async def play(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            admissions = tasks.create_task(self.admissions())
            await self.learn()
            admissions.cancel()
        self.buffer.close()

    async def admissions(self) -> None:
        async with asyncio.TaskGroup() as generators:
            while True:
                generators.create_task(self.generate(await self.buffer.admit()))

    async def generate(self, admission: Admission) -> None:
        engine = self.random.randrange(2)
        turns = int(self.random.lognormvariate(1.0, 1.2))
        spans = [VersionSpan(self.engines[engine], 0, 1)]
        for i in range(min(turns, 100)):
            await asyncio.sleep(0)
            if self.engines[engine] != spans[-1].version:
                spans.append(VersionSpan(self.engines[engine], i + 1, i + 2))
        fate = self.random.random()
        if fate < 0.1:
            self.lost.add(admission.group_index)
            return self.buffer.discard(admission.group_index, "failed")
        n = spans[-1].end
        sample = Sample(
            tokens=[1] * n,
            response_length=n,
            loss_mask=[1] * n,
            rollout_log_probs=[0.0] * n,
            weight_versions=spans,
        )
        samples = tuple([sample] * self.random.randint(1, 3))
        version = admission.policy_version
        await self.buffer.put(
            Group(
                group_index=admission.group_index,
                deadline=admission.deadline,
                admitted_version=version,
                samples=samples,
            )
        )

    async def learn(self) -> None:
        async with asyncio.TaskGroup() as pushes:
            push: asyncio.Task | None = None
            for rollout in range(self.clock.num_rollout):
                groups = await self.buffer.take(rollout)
                self.seen[rollout] = [g.group_index for g in groups]
                for group in groups:
                    for sample in group.samples:
                        self.staleness = max(
                            self.staleness,
                            self.clock.version_at(rollout)
                            - min(s.version for s in sample.weight_versions),
                        )
                await self.turns(5)
                self.clock.trained(rollout)
                if self.clock.push_due(rollout):
                    if push is not None:  # one at a time; training goes on beside it
                        await push
                    push = pushes.create_task(self.push())

    async def push(self) -> None:
        for engine in range(2):
            await self.turns(3)
            self.engines[engine] += 1
        self.clock.pushed()

    async def turns(self, most: int) -> None:
        for _ in range(self.random.randint(0, most)):
            await asyncio.sleep(0)


async def within_turns(run: Run) -> None:
    task = asyncio.ensure_future(run.play())
    for _ in range(MAX_TURNS):
        if task.done():
            return await task
        await asyncio.sleep(0)
    task.cancel()
    raise AssertionError(f"deadlock: {run.buffer.statistics()}, {run.clock.state_dict()}")


@given(
    P=st.integers(1, 4),
    K=st.integers(0, 4),
    N=st.integers(1, 3),
    slack=st.integers(0, 2),
    rollouts=st.integers(1, 10),
    budget=st.sampled_from([1, 5_000, 20_000, 1 << 30]),
    name=st.sampled_from(["deadline", "fifo", "lifo", "uniform"]),
    seed=st.integers(0, 2**32),
)
@example(P=4, K=4, N=1, slack=2, rollouts=10, budget=1, name="lifo", seed=1)
@example(P=4, K=3, N=3, slack=0, rollouts=10, budget=5_000, name="uniform", seed=2)
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
def test_every_group_is_consumed_once_within_the_bound(tmp_path_factory, **knobs) -> None:
    directory = tmp_path_factory.mktemp("buffer")
    run = Run(directory, **knobs)
    asyncio.run(within_turns(run))
    P, rollouts = knobs["P"], knobs["rollouts"]
    consumed = [g for groups in run.seen.values() for g in groups]
    assert [len(groups) for groups in run.seen.values()] == [P] * rollouts
    assert sorted([*consumed, *run.lost]) == list(range(run.clock.num_admitted)), (
        "each group is consumed or lost, once"
    )
    assert run.staleness == run.buffer.statistics().staleness_max <= run.clock.max_staleness
    assert run.buffer.statistics().num_bytes == 0
    assert [p.name for p in directory.iterdir()] == ["journal.log"], "consumed segments are deleted"
