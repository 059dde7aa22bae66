"""A group that is encoded where it was made is stored without being read."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from buffers import replay_buffer
from buffers.encoded import decode_group, encode_group
from buffers.segments import SegmentStore
from configs.schema import AsyncConfig
from pipeline.core.errors import UnstorableSamplesError
from pipeline.schedule.clock import RolloutClock
from tests.unit.buffers.test_replay_buffer import make, make_group, release


async def test_bytes_from_elsewhere_are_what_the_learner_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer, _ = make(tmp_path)
    groups = [make_group(await buffer.admit(), 5 + i) for i in range(2)]
    encoded = [encode_group(group) for group in groups]
    monkeypatch.setattr(replay_buffer, "encode_group", None)
    for group in encoded:
        # as it comes out of another process's memory
        view = np.frombuffer(bytes(group.message), np.uint8)
        sent = pickle.dumps(dataclasses.replace(group, message=view))
        await buffer.put_encoded(pickle.loads(sent))
    taken = await buffer.take(0)
    assert [[list(s.tokens) for s in g.samples] for g in taken] == [
        [list(s.tokens) for s in g.samples] for g in groups
    ]
    buffer.close()


async def test_the_small_fields_say_what_decisions_need(tmp_path: Path) -> None:
    buffer, _ = make(tmp_path)
    group = make_group(await buffer.admit(), 7, version=3)
    encoded = encode_group(group, priority=lambda g: 0.25)
    assert (encoded.group_index, encoded.deadline) == (group.group_index, group.deadline)
    assert encoded.response_lengths == (7, 7) and encoded.oldest_version == 3
    assert encoded.priority == 0.25 and encoded.num_bytes == len(encoded.message)
    assert [s.reward for s in decode_group(encoded).samples] == [0.0, 1.0]
    buffer.close()


async def test_what_cannot_be_stored_is_said_before_the_priority_is_asked_for(
    tmp_path: Path,
) -> None:
    buffer, _ = make(tmp_path)
    group = make_group(await buffer.admit())
    group.samples[1].metadata["judge"] = object()
    with pytest.raises(UnstorableSamplesError, match=r"sample\.metadata"):
        encode_group(group, priority=lambda g: pytest.fail("asked"))
    buffer.close()


async def test_a_late_group_is_counted_by_its_small_fields(tmp_path: Path) -> None:
    clock = RolloutClock(
        rollout_batch_size=1,
        async_buffer_size=1,
        update_weights_interval=1,
        max_staleness=1,
        num_rollout=9,
    )
    config = AsyncConfig(async_buffer_size=1, max_staleness=1, stale_policy="drop")
    buffer = replay_buffer.ReplayBuffer(tmp_path, config, clock)
    late = encode_group(make_group(await buffer.admit(), 9))
    stored = SegmentStore.append
    for rollout_id in range(2):
        await buffer.put(make_group(await buffer.admit(), 3))
        await buffer.take(rollout_id)
        release(clock, rollout_id)
    SegmentStore.append = lambda *_: pytest.fail("a late group is not stored")
    try:
        await buffer.put_encoded(late)
    finally:
        SegmentStore.append = stored
    assert buffer.statistics().removed_lengths == {9: 2}
    buffer.close()
