"""The replay buffer: who waits for what, what is refused, what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from buffers.replay_buffer import ReplayBuffer
from configs.schema import AsyncConfig
from pipeline.core.errors import BufferCorruption, ReplayBufferError
from pipeline.core.types import Admission, Group, Sample, Status, VersionSpan
from pipeline.schedule.clock import RolloutClock
from tests.manual_time import ManualTime

UNLIMITED = 1 << 40


def make(
    path: Path,
    P: int = 2,
    K: int = 1,
    S: int | None = None,
    max_bytes: int = UNLIMITED,
    num_rollout: int = 10,
    **kwargs: Any,
):
    clock = RolloutClock(
        rollout_batch_size=P,
        async_buffer_size=K,
        update_weights_interval=1,
        max_staleness=S,
        num_rollout=num_rollout,
    )
    config = AsyncConfig(
        async_buffer_size=K,
        max_staleness=S,
        buffer_max_bytes=max_bytes,
        buffer_selector=kwargs.pop("name", "deadline"),
        keep_last_rollouts=kwargs.pop("keep_last", 0),
    )
    return ReplayBuffer(path, config, clock, **kwargs), clock


def make_group(admission: Admission, num_tokens: int = 10, version: int | None = None) -> Group:
    version = admission.policy_version if version is None else version
    samples = tuple(
        Sample(
            group_index=admission.group_index,
            index=2 * admission.group_index + i,
            tokens=list(range(num_tokens)),
            response_length=num_tokens,
            loss_mask=[1] * num_tokens,
            rollout_log_probs=[-1.0] * num_tokens,
            weight_versions=[VersionSpan(version, 0, num_tokens)],
            reward=float(i),
            status=Status.COMPLETED,
        )
        for i in range(2)
    )
    return Group(
        group_index=admission.group_index,
        deadline=admission.deadline,
        admitted_version=admission.policy_version,
        samples=samples,
    )


def admit_all(buffer: ReplayBuffer) -> list[Admission]:
    out = []
    while (admission := buffer.try_admit()) is not None:
        out.append(admission)
    return out


async def turns() -> None:
    """Let every other task run as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


def release(clock: RolloutClock, rollout_id: int) -> None:
    clock.trained(rollout_id)
    clock.pushed()


def files(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


async def settled(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task:
    """A task that has run as far as it can without help."""
    task = asyncio.ensure_future(coroutine)
    await turns()
    return task


def indices(groups: list[Group]) -> list[int]:
    return [g.group_index for g in groups]


async def test_take_waits_for_what_is_due_and_for_nothing_else(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path, P=2, K=1, S=1)
    first = admit_all(buffer)
    for a in first[1:3]:
        await buffer.put(make_group(a))
    assert indices(await buffer.take(0)) == [1, 2], (
        "all are due by rollout 1: group 0 can still make that"
    )
    release(clock, 0)
    late = admit_all(buffer)
    for a in [first[3], *late]:
        await buffer.put(make_group(a))
    take = await settled(buffer.take(1))
    assert not take.done(), "group 0 is due now"
    await buffer.put(make_group(first[0]))
    assert indices(await take) == [3, 0]


async def test_admission_waits_for_the_release(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path, P=1, K=0)
    await buffer.put(make_group(await buffer.admit()))
    admission = await settled(buffer.admit())
    await buffer.take(0)
    clock.trained(0)
    await turns()
    assert not admission.done(), "trained, but not pushed"
    clock.pushed()
    assert (await admission) == Admission(
        group_index=1, deadline=1, policy_version=1, prompt_index=1
    )


async def test_a_discarded_group_is_replaced_and_no_longer_waited_for(tmp_path: Path) -> None:
    buffer, _ = make(tmp_path, P=1, K=1, S=1)
    slow, other = admit_all(buffer)
    take = await settled(buffer.take(0))
    replacement = await settled(buffer.admit())
    await buffer.put(make_group(other))
    await take
    buffer.discard(slow.group_index, "failed")
    assert (await replacement).group_index == 2
    assert buffer.statistics().num_discarded == {"failed": 1}
    with pytest.raises(ReplayBufferError, match="group 0 is not outstanding"):
        buffer.discard(slow.group_index, "failed")


async def test_discarding_what_is_due_lets_the_learner_go_on(tmp_path: Path) -> None:
    buffer, _ = make(tmp_path, P=1, K=0, S=0)
    (due,) = admit_all(buffer)
    take = await settled(buffer.take(0))
    buffer.discard(due.group_index, "failed")
    await buffer.put(make_group(await buffer.admit()))
    assert indices(await take) == [1]


async def test_a_stored_group_can_be_discarded(tmp_path: Path) -> None:
    buffer, _ = make(tmp_path, P=2, K=1)
    for a in admit_all(buffer):
        await buffer.put(make_group(a))
    used = buffer.statistics().num_bytes
    buffer.discard(0, "filtered")
    assert buffer.statistics().num_bytes == used * 3 // 4
    assert indices(await buffer.take(0)) == [1, 2]


async def test_the_byte_budget_holds_generators_back(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path, P=1, K=3, max_bytes=1)
    first, second, third, _ = admit_all(buffer)
    await buffer.put(make_group(first))  # an empty buffer takes anything
    blocked = [await settled(buffer.put(make_group(a))) for a in (second, third)]
    assert [t.done() for t in blocked] == [False, False]
    assert buffer.statistics().num_limited == 2
    assert indices(await buffer.take(0)) == [0]
    await turns()
    assert [t.done() for t in blocked] == [True, False], "room for one"
    assert buffer.statistics().num_limited == 1
    clock.trained(0)
    assert indices(await buffer.take(1)) == [1]
    await blocked[1]


async def test_a_group_that_the_learner_waits_for_is_let_in_over_the_budget(tmp_path: Path) -> None:
    """Rollout 1 must have group 0; the budget is spent by groups that are due later."""
    buffer, clock = make(tmp_path, P=1, K=1, S=1, max_bytes=1)
    due, other = admit_all(buffer)
    await buffer.put(make_group(other))
    assert indices(await buffer.take(0)) == [1]
    release(clock, 0)
    (later,) = admit_all(buffer)
    await buffer.put(make_group(later))
    put = await settled(buffer.put(make_group(due)))
    assert not put.done()
    assert indices(await buffer.take(1)) == [0]
    assert put.done()


async def test_the_learner_lets_in_no_more_than_it_waits_for(tmp_path: Path) -> None:
    buffer, _ = make(tmp_path, P=2, K=2, max_bytes=1)
    puts = [await settled(buffer.put(make_group(a))) for a in admit_all(buffer)]
    assert [p.done() for p in puts] == [True, *[False] * 5]
    assert indices(await buffer.take(0)) == [0, 1]
    await turns()
    assert sum(p.done() for p in puts) == 3, "two were taken, one found the buffer empty"
    buffer.close()
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert sum(isinstance(r, ReplayBufferError) for r in results) == 3


async def test_a_group_discarded_while_it_waits_is_not_stored(tmp_path: Path) -> None:
    buffer, _ = make(tmp_path, P=1, K=1, max_bytes=1)
    first, second = admit_all(buffer)
    await buffer.put(make_group(first))
    put = await settled(buffer.put(make_group(second)))
    buffer.discard(1, "failed")
    await buffer.take(0)
    with pytest.raises(ReplayBufferError, match="group 1 is put, but is not generating"):
        await put
    assert buffer.statistics().num_limited == 0


async def test_only_admitted_groups_are_stored_and_only_once(tmp_path: Path) -> None:
    buffer, _ = make(tmp_path)
    admission = await buffer.admit()
    await buffer.put(make_group(admission))
    with pytest.raises(ReplayBufferError, match="group 0 is put, but is not generating"):
        await buffer.put(make_group(admission))
    with pytest.raises(ReplayBufferError, match="group 5 is put, but is not generating"):
        await buffer.put(
            make_group(Admission(group_index=5, deadline=1, policy_version=0, prompt_index=5))
        )


async def test_tokens_beyond_the_bound_stop_the_run(tmp_path: Path) -> None:
    """The scheduler keeps the bound for honest engines; one that served older weights than it
    confirmed is found out here."""
    buffer, clock = make(tmp_path, P=1, K=1, S=1)
    for r in range(2):
        await buffer.put(make_group(await buffer.admit(), version=0))
        assert buffer.statistics().staleness_max == max(r - 1, 0)
        await buffer.take(r)
        release(clock, r)
    assert buffer.statistics().staleness_max == 1
    await buffer.put(make_group(await buffer.admit(), version=0))
    with pytest.raises(
        ReplayBufferError,
        match=(
            r"policy version 0 at rollout 2 are 2 versions stale, the bound is 1.*admitted at"
            r" version 2"
        ),
    ):
        await buffer.take(2)
    assert list(clock.outstanding) == [2], "nothing was consumed"


async def test_tokens_without_loss_do_not_count_as_stale(tmp_path: Path) -> None:
    buffer, _ = make(tmp_path, P=1, K=0)
    group = make_group(await buffer.admit(), version=-1)
    for sample in group.samples:
        sample.loss_mask = [0] * sample.response_length
    await buffer.put(group)
    await buffer.take(0)


async def test_a_damaged_group_is_not_trained_on(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path, P=1)
    await buffer.put(make_group(await buffer.admit()))
    path = tmp_path / "segment-000000.arrow"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(BufferCorruption, match=r"segment-000000\.arrow at byte"):
        await buffer.take(0)
    assert clock.num_consumed == 0


async def test_seconds_waited_are_counted_on_both_sides(tmp_path: Path) -> None:
    time = ManualTime()
    buffer, clock = make(tmp_path, P=1, K=0, time=time)
    admission = await buffer.admit()
    take, admit = await settled(buffer.take(0)), await settled(buffer.admit())
    time.advance(3.0)
    await buffer.put(make_group(admission))
    await take
    time.advance(2.0)
    release(clock, 0)
    await admit
    s = buffer.statistics()
    assert (s.take_wait_seconds, s.admit_wait_seconds, s.put_wait_seconds) == (3.0, 5.0, 0.0)


async def test_a_wait_at_the_budget_is_counted_also_when_cancelled(tmp_path: Path) -> None:
    time = ManualTime()
    buffer, _ = make(tmp_path, P=1, K=1, max_bytes=1, time=time)
    first, second = admit_all(buffer)
    await buffer.put(make_group(first))
    put = await settled(buffer.put(make_group(second)))
    time.advance(4.0)
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    s = buffer.statistics()
    assert (s.put_wait_seconds, s.num_limited, s.num_generating) == (4.0, 0, 1)


async def test_statistics_say_where_every_group_is(tmp_path: Path) -> None:
    buffer, _ = make(tmp_path, P=1, K=3)
    a = admit_all(buffer)
    for admission in a[:2]:
        await buffer.put(make_group(admission))
    await buffer.take(0)
    buffer.discard(3, "zero_std")
    s = buffer.statistics()
    assert (s.num_generating, s.num_ready, s.num_put, s.num_taken, s.num_discarded) == (
        1,
        1,
        2,
        1,
        {"zero_std": 1},
    )
    assert s.num_bytes > 0 and s.staleness_bound == 6


async def test_segments_are_deleted_once_a_checkpoint_covers_them(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path, P=2, K=0, max_segment_bytes=1)
    for r in range(3):
        for a in admit_all(buffer):
            await buffer.put(make_group(a))
        groups = await buffer.take(r)
        release(clock, r)
        np.testing.assert_array_equal(groups[0].samples[0].tokens, np.arange(10))
    assert len(files(tmp_path)) == 1 + 6, (
        "the journal, and every group: a crash now would need them"
    )
    buffer.committed(2, "rollout_000002")
    assert len(files(tmp_path)) == 1 + 2
    buffer.committed(3, "rollout_000003")
    buffer.close()
    assert files(tmp_path) == ["journal.log"]


async def test_close_wakes_whoever_waits(tmp_path: Path) -> None:
    buffer, _ = make(tmp_path, P=1, K=0)
    await buffer.admit()
    waiting = [await settled(buffer.take(0)), await settled(buffer.admit())]
    buffer.close()
    buffer.close()
    for task in waiting:
        with pytest.raises(ReplayBufferError, match="closed"):
            await task
    with pytest.raises(ReplayBufferError, match="closed"):
        await buffer.put(
            make_group(Admission(group_index=0, deadline=0, policy_version=0, prompt_index=0))
        )


async def test_a_resumed_buffer_waits_for_what_was_outstanding(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path, P=1, K=1)
    for a in admit_all(buffer):
        await buffer.put(make_group(a))
    buffer.close()
    again = RolloutClock(
        rollout_batch_size=1, async_buffer_size=1, update_weights_interval=1, num_rollout=10
    )
    again.load_state_dict(clock.state_dict())
    resumed = ReplayBuffer(tmp_path, AsyncConfig(async_buffer_size=1), again)
    assert resumed.try_admit() is None
    assert list(again.outstanding) == [0, 1]
    for a in list(again.outstanding.values()):
        await resumed.put(make_group(a))
    assert indices(await resumed.take(0)) == [0]


async def test_the_selector_comes_from_the_configuration(tmp_path: Path) -> None:
    buffer, _ = make(tmp_path, P=1, K=2, name="lifo")
    for a in admit_all(buffer):
        await buffer.put(make_group(a))
    assert indices(await buffer.take(0)) == [2]
