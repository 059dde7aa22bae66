"""A run's decisions, made again: none differs, and a changed entry is found."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from buffers.audit import DecisionCheck
from buffers.journal import FILE_NAME, read_journal
from buffers.replay_buffer import OUTDATED
from configs.schema import AsyncConfig
from pipeline.schedule.clock import RolloutClock
from tests.unit.buffers.test_policies import make, rollouts
from tests.unit.buffers.test_replay_buffer import admit_all, make_group, release

JournalEntries = list[dict[str, Any]]


def checked(buffer: Any, entries: JournalEntries, **options: Any) -> DecisionCheck:
    """With a new clock of the same knobs."""
    clock: RolloutClock = buffer._clock
    config = AsyncConfig(async_buffer_size=clock.buffer_size, **options)
    new = RolloutClock(
        rollout_batch_size=clock.batch_size,
        async_buffer_size=clock.buffer_size,
        update_weights_interval=clock.interval,
        max_staleness=clock.max_staleness,
        num_rollout=clock.num_rollout,
        limiter=clock.limiter,
    )
    check = DecisionCheck(config, new, seed=0)
    check.run(entries)
    return check


REPLAY = {"max_times_sampled": 2, "buffer_selector": "prioritized"}


@pytest.fixture
async def finished(tmp_path: Path) -> tuple[Any, JournalEntries]:
    buffer, clock = make(tmp_path, **REPLAY)
    await rollouts(buffer, clock, 6)
    buffer.close()
    return buffer, read_journal(tmp_path / FILE_NAME)[0]


async def test_nothing_differs(finished: tuple[Any, JournalEntries]) -> None:
    check = checked(*finished, **REPLAY)
    assert (check.differences, check.num_taken, check.num_admitted) == ([], 6, 14)


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [("consume", {"x": []}, "rollout 5 took"), ("admit", {"d": 99}, "now it would be")],
)
async def test_a_record_that_was_changed_is_found(
    finished: tuple[Any, JournalEntries], kind: str, change: dict[str, Any], says: str
) -> None:
    buffer, entries = finished
    at = max(n for n, r in enumerate(entries) if r["t"] == kind)
    entries[at] = {**entries[at], **change}
    assert any(says in what for what in checked(buffer, entries, **REPLAY).differences)


async def test_min_size_and_late_groups_are_decided_again(tmp_path: Path) -> None:
    """What a check with choreography of its own would not know."""
    options = {"stale_policy": "drop"}
    buffer, clock = make(tmp_path, fresh=1, K=2, S=2, minimum=2, **options)
    slow, *others = admit_all(buffer)
    for rollout in range(3):
        for admission in [*others, *admit_all(buffer)]:
            await buffer.put(make_group(admission))
        others = []
        await buffer.take(rollout)
        release(clock, rollout)
    await buffer.put(make_group(slow))
    buffer.close()
    entries, _ = read_journal(tmp_path / FILE_NAME)
    assert clock.given_back == {"stale: dropped": 1}
    assert checked(buffer, entries, **options).differences == []
    early = next(n for n, r in enumerate(entries) if r["t"] == "consume")
    first_put = next(n for n, r in enumerate(entries) if r["t"] == "put")
    entries[early] = {**entries[early], "at": first_put + 1}  # one group was there
    assert "would wait" in checked(buffer, entries, **options).differences[0]


async def test_a_group_given_back_as_outdated_is_decided_again(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path, fresh=1, K=0, S=0, made_ahead=True)
    for rollout in range(2):
        (admission,) = admit_all(buffer)
        await buffer.put(make_group(admission, version=0))
        if rollout == 1:
            taking = asyncio.create_task(buffer.take(1))
            await asyncio.sleep(0)
            (again,) = admit_all(buffer)
            await buffer.put(make_group(again, version=1))
            await taking
        else:
            await buffer.take(0)
        release(clock, rollout)
    buffer.close()
    entries, _ = read_journal(tmp_path / FILE_NAME)
    assert [(e["g"], e["why"]) for e in entries if e["t"] == "discard"] == [(1, OUTDATED)]
    assert checked(buffer, entries, max_staleness=0).differences == []
    put = next(n for n, e in enumerate(entries) if e["t"] == "put" and e["g"] == 1)
    entries[put] = {**entries[put], "w": 1}  # as if it had been new enough
    assert "was removed as outdated" in checked(buffer, entries, max_staleness=0).differences[0]
