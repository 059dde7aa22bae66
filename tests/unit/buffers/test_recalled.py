"""Groups that a crash left complete are marked as such, and they alone may be beyond the bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from buffers.replay_buffer import ReplayBuffer
from configs.schema import AsyncConfig
from pipeline.core.errors import ReplayBufferError
from pipeline.core.types import StepResult
from pipeline.run.metrics import Lap, train_record
from tests.unit.buffers.test_last_rollouts import make, new_clock
from tests.unit.buffers.test_replay_buffer import admit_all, make_group, release


async def crashed(path: Path) -> tuple[Ledger, dict[str, Any]]:
    """The journal of two rollouts, and the checkpoint's clock, which knows of the first only.
    Version 2 was pushed, and is lost."""
    buffer, clock = make(path)
    for rollout in range(2):
        for admission in admit_all(buffer):
            await buffer.put(make_group(admission))
        groups = await buffer.take(rollout)
        assert not any(group.recalled for group in groups)
        buffer.pushing(rollout + 1)
        release(clock, rollout)
        if rollout == 0:
            saved = clock.state_dict()
            buffer.committed(1, "rollout_000001")
    buffer._journal.close()
    return Ledger(read_journal(path / FILE_NAME)[0]), saved


async def test_only_a_recalled_group_may_be_beyond_the_bound(tmp_path: Path) -> None:
    ledger, saved = await crashed(tmp_path)
    clock = new_clock()
    clock.load_state_dict(saved)
    clock.skip_versions_until(ledger.policy_version)
    buffer = ReplayBuffer(
        tmp_path, AsyncConfig(), clock, ledger=ledger, restored_from="rollout_000001"
    )
    outstanding = [*clock.outstanding.values(), *admit_all(buffer)]
    assert [buffer.recall(a.group_index) for a in outstanding] == ["complete", "complete"]
    groups = await buffer.take(1)
    record = train_record(
        rollout_id=1,
        policy_version=clock.version_at(1),
        groups=groups,
        result=StepResult(metrics={}),
        staleness_bound=clock.max_staleness,
        lap=Lap(seconds=1.0, trainer_idle_fraction=0.0, generation_idle_fraction=0.0),
        wall_seconds=1.0,
    )
    assert record["staleness_max"] > record["staleness_bound"] == 0
    assert record["num_groups_beyond_bound"] == record["num_groups_beyond_bound_recalled"] == 2
    release(clock, 1)
    for admission in admit_all(buffer):  # these are of the new life: no excuse
        await buffer.put(make_group(admission, version=1))
    with pytest.raises(ReplayBufferError, match="versions stale, the bound is 0"):
        await buffer.take(2)
