"""The producer: what fails is tried again, then given up; what is filtered is replaced; what was
under way is resumed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from buffers.encoded import encode_group
from buffers.replay_buffer import ReplayBuffer
from configs.schema import AsyncConfig
from pipeline.core.deadline import Deadline
from pipeline.core.errors import CheckpointError, GenerateError
from pipeline.core.types import Sample, Status, VersionSpan
from pipeline.run.group_maker import NO_DEADLINE, GroupMaker
from pipeline.run.producer import Producer
from pipeline.schedule.clock import RolloutClock

N = 2  # samples a group
KEEP = SimpleNamespace(keep=True, reason=None)


class FakeSource:
    """Prompts "0", "1", ..."""

    def __init__(self) -> None:
        self.next = 0

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        out = [[Sample(prompt=str(self.next + i)) for _ in range(N)] for i in range(num_samples)]
        self.next += num_samples
        return out

    def add_samples(self, groups: list[list[Sample]]) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    def load_state_dict(self, state: Any) -> None:
        self.next = state["next"]


class FakeGenerate:
    """Fails the attempts that `fails(prompt, place in the group, attempt)` names; hangs at prompts
    in `hanging`."""

    def __init__(self, fails: Callable[[str, int, int], bool] = lambda *_: False) -> None:
        self.fails, self.hanging = fails, set[str]()
        self.calls: list[tuple[str, list[int]]] = []  # (prompt, places)
        self.attempts: Counter[int] = Counter()
        self.version: Callable[[], int] = lambda: 0
        self.sixth_call = asyncio.Event()

    async def __call__(
        self, samples: Sequence[Sample], *, evaluation: bool = False
    ) -> list[Sample]:
        assert not evaluation and samples
        self.calls.append((str(samples[0].prompt), [s.index % N for s in samples]))
        if len(self.calls) == 6:
            self.sixth_call.set()
        if samples[0].prompt in self.hanging:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        return [self._filled(s) for s in samples]

    def _filled(self, template: Sample) -> Sample:
        sample = Sample.from_dict(template.to_dict())
        self.attempts[sample.index] += 1
        if self.fails(sample.prompt, sample.index % N, self.attempts[sample.index]):
            sample.status, sample.error = Status.FAILED, "EngineError: no route"
            return sample
        sample.tokens = [1]
        sample.append_response_tokens(
            [2], log_probs=[-1.0], spans=[VersionSpan(self.version(), 0, 1)]
        )
        sample.status = Status.COMPLETED
        return sample


class FakeReward:
    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    async def __call__(self, samples: Sequence[Sample]) -> None:
        self.seen.append(sorted(s.index % N for s in samples))
        for sample in samples:
            if sample.status is not Status.FAILED:
                sample.reward = float(sample.index % N)


class World:
    """A producer with a real buffer and clock between fakes."""

    def __init__(
        self,
        path: Path,
        *,
        keep: Callable[..., Any] = lambda s: KEEP,
        retries: int = 1,
        K: int = 0,
        deadline: Deadline = NO_DEADLINE,
        **generate: Any,
    ) -> None:
        self.clock = RolloutClock(
            rollout_batch_size=2, async_buffer_size=K, update_weights_interval=1, num_rollout=50
        )
        self.source, self.generate, self.reward = (
            FakeSource(),
            FakeGenerate(**generate),
            FakeReward(),
        )
        self.generate.version = lambda: self.clock.policy_version
        self.path, self.keep, self.retries, self.K = path, keep, retries, K
        self.deadline = deadline

    def open(self) -> None:
        """Buffer and producer; on resume after the clock's state is loaded."""
        self.buffer = ReplayBuffer(self.path, AsyncConfig(async_buffer_size=self.K), self.clock)
        self.maker = GroupMaker(
            generate=self.generate,
            reward=self.reward,
            keep=self.keep,
            encode=encode_group,
            group_max_retries=self.retries,
            deadline=self.deadline,
        )
        self.producer = Producer(
            source=self.source, make=self.maker, buffer=self.buffer, clock=self.clock
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.producer.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            self.buffer.close()


def world(*args: Any, **kwargs: Any) -> World:
    out = World(*args, **kwargs)
    out.open()
    return out


async def test_groups_come_numbered_and_scored_under_their_admission(tmp_path: Path) -> None:
    w = world(tmp_path)
    async with w.running(), asyncio.timeout(20):
        groups = await w.buffer.take(0)
    assert [(g.group_index, g.deadline, g.admitted_version) for g in groups] == [
        (0, 0, 0),
        (1, 0, 0),
    ]
    assert [[(s.group_index, s.index, s.prompt, s.reward) for s in g.samples] for g in groups] == [
        [(0, 0, "0", 0.0), (0, 1, "0", 1.0)],
        [(1, 2, "1", 0.0), (1, 3, "1", 1.0)],
    ]
    assert w.producer.counts == {"samples_generated": 4}
    assert len(w.generate.calls) == 2  # no third group before the first rollout is trained


async def test_only_the_failed_samples_are_generated_again(tmp_path: Path) -> None:
    w = world(
        tmp_path, fails=lambda prompt, place, attempt: prompt == "1" and place == 1 and attempt == 1
    )
    async with w.running(), asyncio.timeout(20):
        groups = await w.buffer.take(0)
    assert [g.group_index for g in groups] == [0, 1]
    assert [s.index for s in groups[1].samples] == [2, 3] and all(
        s.status is Status.COMPLETED for s in groups[1].samples
    )
    assert [c for c in w.generate.calls if c[0] == "1"] == [("1", [0, 1]), ("1", [1])]
    assert w.reward.seen[-1] == [0, 1]  # a group reward sees the whole group
    assert w.producer.counts == {"samples_generated": 5, "samples_failed": 1, "groups_retried": 1}


async def test_a_group_that_fails_for_good_is_given_up_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    w = world(tmp_path, retries=2, fails=lambda prompt, place, attempt: prompt == "0")
    async with w.running(), asyncio.timeout(20):
        groups = await w.buffer.take(0)
    # never trained on as if its reward were 0
    assert sorted(g.samples[0].prompt for g in groups) == ["1", "2"]
    assert w.clock.given_back == {"failed: EngineError": 1} and w.clock.num_admitted == 3
    assert w.producer.counts == {
        "samples_generated": 10,
        "samples_failed": 6,
        "groups_retried": 2,
        "groups_failed": 1,
    }
    said = "given up: group 0: 2 samples failed, the first with: EngineError: no route"
    assert said in caplog.text
    assert "0" not in w.producer.state_dict()["prompts"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metadata", {"seen": {1, 2}}),
        ("metadata", {"judge": object()}),
        ("reward", {"score": 1.0, "parts": {1}}),
        ("response", "\ud800"),
        ("train_metadata", {(1, 2): "pair"}),
    ],
)
async def test_a_sample_that_cannot_be_stored_fails_alone_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, field: str, value: Any
) -> None:
    def keep(samples: Sequence[Sample]) -> Any:
        if samples[0].prompt == "0":
            setattr(samples[1], field, value)
        return KEEP

    w = world(tmp_path, keep=keep)
    async with w.running(), asyncio.timeout(20):
        groups = await w.buffer.take(0)
    assert sorted(g.samples[0].prompt for g in groups) == ["1", "2"]
    assert w.producer.counts["samples_failed"] == 1 and w.producer.counts["groups_failed"] == 1
    assert w.clock.given_back == {"failed: Unstorable": 1}
    assert "given up: group 0: 1 sample failed" in caplog.text
    assert f"sample.{field}" in caplog.text and "cannot be stored" in caplog.text


async def test_what_agents_did_is_counted_once_a_trajectory(tmp_path: Path) -> None:
    w = world(tmp_path)
    score = w.reward.__call__

    async def with_agents(samples: Sequence[Sample]) -> None:
        await score(samples)
        for part, sample in enumerate(samples):  # two parts of one trajectory, say
            said = {"calls": 3, "errors": {"timeout": 1, "raised": 1}, "cut_outputs": 0, "forks": 1}
            sample.metadata["agent"] = {**said, "part": part}

    w.reward = with_agents  # type: ignore[assignment]
    w.open()
    async with w.running(), asyncio.timeout(20):
        groups = await w.buffer.take(0)
    generated = w.producer.counts["samples_generated"]
    num_groups = generated // len(groups[0].samples)
    assert w.producer.counts == {
        "samples_generated": generated,
        "tool_calls": 3 * num_groups,
        "tool_calls_failed": 2 * num_groups,
        "agent_forks": num_groups,
    }


async def test_answers_that_were_not_judged_in_time_are_counted(tmp_path: Path) -> None:
    w = world(tmp_path)
    score = w.reward.__call__

    async def unjudged(samples: Sequence[Sample]) -> None:
        await score(samples)
        samples[0].metadata["unjudged"] = "no score after 30 s"

    w.reward = unjudged  # type: ignore[assignment]
    w.open()
    async with w.running(), asyncio.timeout(20):
        await w.buffer.take(0)
    assert w.producer.counts == {"samples_generated": 4, "samples_unjudged": 2}


async def test_samples_that_a_custom_function_numbered_itself_are_given_up_not_lost(
    tmp_path: Path,
) -> None:
    w = world(tmp_path, fails=lambda *_: True)
    plain = w.generate._filled

    def numbered(template: Sample) -> Sample:
        sample = plain(template)
        if sample.prompt == "0":
            sample.index = -1 - sample.index
        else:
            sample.status, sample.error = Status.COMPLETED, None
            sample.tokens = [1]
            sample.append_response_tokens([2], log_probs=[-1.0], spans=[VersionSpan(0, 0, 1)])
        return sample

    w.generate._filled = numbered  # type: ignore[method-assign]
    async with w.running(), asyncio.timeout(20):
        groups = await w.buffer.take(0)
    assert sorted(g.samples[0].prompt for g in groups) == ["1", "2"]
    assert w.producer.counts["groups_failed"] == 1


async def test_filtered_groups_are_counted_by_reason_and_replaced(tmp_path: Path) -> None:
    def keep(samples: Sequence[Sample]) -> Any:
        return SimpleNamespace(keep=int(samples[0].prompt) % 3 == 2, reason="dull")

    w = world(tmp_path, keep=keep)
    async with w.running(), asyncio.timeout(20):
        groups = await w.buffer.take(0)
    assert [g.samples[0].prompt for g in groups] == ["2", "5"]
    assert w.producer.counts["samples_discarded"] == 4 * N
    assert w.producer.counts["groups_filtered"] == 4 == w.clock.given_back["filtered: dull"]
    assert "groups_failed" not in w.producer.counts


async def test_complete_samples_of_a_group_given_up_are_counted_as_discarded(
    tmp_path: Path,
) -> None:
    w = world(tmp_path, fails=lambda prompt, place, attempt: prompt == "0" and place == 1)
    async with w.running(), asyncio.timeout(20):
        await w.buffer.take(0)
    assert w.producer.counts["groups_failed"] == 1
    assert w.producer.counts["samples_discarded"] == N - 1


async def test_a_score_that_does_not_come_is_a_failure_that_is_retried(tmp_path: Path) -> None:
    w = world(tmp_path, deadline=Deadline(0.01))
    hangs = [True]

    async def reward(samples: Sequence[Sample]) -> None:
        if samples[0].prompt == "0" and hangs.pop():
            hangs.append(False)
            await asyncio.Event().wait()
        for sample in samples:
            sample.reward = 1.0

    w.maker._reward = reward
    async with w.running(), asyncio.timeout(20):
        groups = await w.buffer.take(0)
    assert sorted(g.samples[0].prompt for g in groups) == ["0", "1"]
    counts = w.producer.counts
    assert (counts["samples_timed_out"], counts["samples_failed"]) == (N, N)
    assert (counts["groups_retried"], counts["groups_failed"]) == (1, 0)


async def test_failures_in_a_row_end_the_run_with_their_cause(tmp_path: Path) -> None:
    w = world(tmp_path, retries=0, fails=lambda *_: True)
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(20):
            await w.producer.run()
    assert caught.group_contains(
        GenerateError, match="16 groups failed in a row, the last with: EngineError: no route"
    )
    assert w.producer.counts["groups_failed"] == 16
    w.buffer.close()


async def test_a_success_in_between_starts_the_count_anew(tmp_path: Path) -> None:
    w = world(tmp_path, retries=0, fails=lambda prompt, place, attempt: int(prompt) % 16 != 15)
    async with w.running(), asyncio.timeout(20):
        groups = await w.buffer.take(0)
    assert [g.samples[0].prompt for g in groups] == ["15", "31"]
    assert w.producer.counts["groups_failed"] == 30


async def test_resume_generates_the_groups_under_way_under_their_old_admissions(
    tmp_path: Path,
) -> None:
    old = world(tmp_path / "old", K=1)
    old.generate.hanging = {"2", "4"}
    async with old.running(), asyncio.timeout(20):
        await old.buffer.take(0)
        old.clock.trained(0)
        old.clock.pushed()
        old.producer.forget()
        # two more rollouts are admitted: 2 and 4 hang, 3 and 5 wait in the buffer or come to
        await old.generate.sixth_call.wait()
        state = json.loads(
            json.dumps({"clock": old.clock.state_dict(), "producer": old.producer.state_dict()})
        )
        admissions = dict(old.clock.outstanding)
    assert sorted(admissions) == [2, 3, 4, 5] == sorted(map(int, state["producer"]["prompts"]))

    new = World(tmp_path / "new", K=1)
    new.clock.load_state_dict(state["clock"])
    new.open()
    new.producer.load_state_dict(state["producer"])
    async with new.running(), asyncio.timeout(20):
        taken = await new.buffer.take(1)
        new.clock.trained(1)
        new.clock.pushed()
        taken += await new.buffer.take(2)
    assert [(g.group_index, g.samples[0].prompt, g.samples[0].index) for g in taken] == [
        (i, str(i), N * i) for i in (2, 3, 4, 5)
    ]
    assert [(g.deadline, g.admitted_version) for g in taken] == [
        (a.deadline, a.policy_version) for a in admissions.values()
    ]
    # nothing is trained on twice
    assert new.source.next >= 6 and not {"0", "1"} & {prompt for prompt, _ in new.generate.calls}
    assert Counter(prompt for prompt, _ in new.generate.calls).most_common(1)[0][1] == 1


async def test_groups_taken_but_not_trained_are_generated_again(tmp_path: Path) -> None:
    w = world(tmp_path)
    async with w.running(), asyncio.timeout(20):
        await w.buffer.take(0)
        clock, producer = w.clock.state_dict(), w.producer.state_dict()
    assert sorted(producer["prompts"]) == ["0", "1"] and [a[0] for a in clock["outstanding"]] == [
        0,
        1,
    ]


async def test_a_state_whose_clock_and_prompts_disagree_is_refused(tmp_path: Path) -> None:
    w = world(tmp_path)
    async with w.running(), asyncio.timeout(20):
        await w.buffer.take(0)
        clock, producer = w.clock.state_dict(), w.producer.state_dict()
    other = World(tmp_path / "other")
    other.clock.load_state_dict(clock)
    other.open()
    for prompts in ({}, {**producer["prompts"], "7": []}):
        with pytest.raises(CheckpointError, match=r"prompts \[0, 1\] are under way"):
            other.producer.load_state_dict({**producer, "prompts": prompts})
    other.buffer.close()
