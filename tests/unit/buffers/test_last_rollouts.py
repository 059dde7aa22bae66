"""--keep-last-rollouts: what was trained on last stays to be looked at, bounded, over restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from buffers.decoding import from_batch
from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from buffers.replay_buffer import ReplayBuffer
from buffers.segments import scan
from configs.schema import AsyncConfig
from pipeline.schedule.clock import RolloutClock
from tests.unit.buffers.test_replay_buffer import admit_all, make_group, release


def new_clock() -> RolloutClock:
    return RolloutClock(
        rollout_batch_size=2, async_buffer_size=0, update_weights_interval=1, num_rollout=9
    )


def make(path: Path, **options) -> tuple[ReplayBuffer, RolloutClock]:
    clock = new_clock()
    return ReplayBuffer(path, AsyncConfig(**options), clock, max_segment_bytes=1), clock


async def train(buffer: ReplayBuffer, clock: RolloutClock, until: int) -> None:
    while (rollout := clock.num_trained) < until:
        for admission in admit_all(buffer):
            await buffer.put(make_group(admission))
        await buffer.take(rollout)
        release(clock, rollout)


def lying(path: Path) -> list[int]:
    """Groups in the segments, of which each holds one."""
    found = sorted(path.glob("segment-*.arrow"))
    return [from_batch(batch).group_index for file in found for _, batch in scan(file)]


def totals(path: Path) -> dict[str, int]:
    return Ledger(read_journal(path / FILE_NAME)[0]).totals()


@pytest.mark.parametrize(("keep", "groups"), [(0, []), (1, [8, 9]), (2, [6, 7, 8, 9])])
@pytest.mark.parametrize("durability", ["memory", "process"])
async def test_a_finished_run_keeps_so_many(
    tmp_path: Path, keep: int, groups: list[int], durability: str
) -> None:
    buffer, clock = make(tmp_path, keep_last_rollouts=keep, buffer_durability=durability)
    await train(buffer, clock, 5)
    buffer.committed(5, "rollout_000005")
    assert buffer.statistics().num_segments == max(len(groups), 1), "one is being written"
    buffer.close()
    assert lying(tmp_path) == groups
    if durability != "memory":
        assert (totals(tmp_path)["lost"], totals(tmp_path)["duplicated"]) == (0, 0)


async def test_the_number_is_a_bound_while_the_run_goes_on(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path, keep_last_rollouts=2)
    for rollout in range(1, 9):
        await train(buffer, clock, rollout)
        buffer.committed(rollout, f"rollout_{rollout:06d}")
        assert lying(tmp_path) == list(range(max(0, 2 * rollout - 4), 2 * rollout))


async def test_a_restart_keeps_them_and_frees_them_in_time(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path, keep_last_rollouts=2)
    await train(buffer, clock, 4)
    saved = clock.state_dict()
    buffer.committed(4, "rollout_000004")
    await train(buffer, clock, 5)  # lost: no checkpoint covers it
    buffer._journal.close()
    again = new_clock()
    again.load_state_dict(saved)
    resumed = ReplayBuffer(
        tmp_path,
        AsyncConfig(keep_last_rollouts=2),
        again,
        max_segment_bytes=1,
        ledger=Ledger(read_journal(tmp_path / FILE_NAME)[0]),
        restored_from="rollout_000004",
    )
    assert lying(tmp_path) == [6, 7, 8, 9], "8 and 9 are to be trained on again"
    for admission in admit_all(resumed):
        assert resumed.recall(admission.group_index) == "complete"
    await train(resumed, again, 5)
    resumed.committed(5, "rollout_000005")
    assert lying(tmp_path) == [6, 7, 8, 9]
    await train(resumed, again, 8)
    resumed.committed(8, "rollout_000008")
    resumed.close()
    assert lying(tmp_path) == [12, 13, 14, 15]
    assert (totals(tmp_path)["lost"], totals(tmp_path)["duplicated"]) == (0, 0)
