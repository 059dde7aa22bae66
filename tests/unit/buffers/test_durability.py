"""Group commit: who returns has had a sync begin after it asked; syncs are shared and never
overlap; failures reach all who waited."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from buffers.durability import GroupCommit
from buffers.replay_buffer import ReplayBuffer
from configs.schema import AsyncConfig
from pipeline.core.types import Group, Sample, Status
from pipeline.schedule.clock import RolloutClock


class Disk:
    """`written` becomes `durable` when a sync that began later ends; syncs end when the test says
    so."""

    def __init__(self) -> None:
        self.written = self.durable = self.syncs = self.running = 0
        self.go = threading.Semaphore(0)
        self.error: Exception | None = None

    def sync(self) -> Callable[[], None]:
        covers, self.syncs = self.written, self.syncs + 1

        def in_thread() -> None:
            self.running += 1
            assert self.running == 1, "two syncs at once"
            self.go.acquire()
            self.running -= 1
            if self.error:
                raise self.error
            self.durable = covers

        return in_thread

    async def write(self, commit: GroupCommit) -> None:
        self.written += 1
        mine = self.written
        await commit()
        assert self.durable >= mine, "returned before its bytes were on the disk"


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_those_who_come_during_a_sync_share_the_next() -> None:
    disk = Disk()
    commit = GroupCommit(disk.sync)
    async with asyncio.TaskGroup() as group:
        group.create_task(disk.write(commit))
        await turns()
        for _ in range(50):
            group.create_task(disk.write(commit))
        await turns()
        disk.go.release(2)
    assert (disk.syncs, disk.durable) == (2, 51)


async def test_a_failed_sync_reaches_everyone_who_waited_and_the_next_may_succeed() -> None:
    disk = Disk()
    commit = GroupCommit(disk.sync)
    disk.error = OSError("no space")
    disk.go.release(10)
    with pytest.raises(OSError, match="no space"):
        await disk.write(commit)
    disk.error = None
    await disk.write(commit)


async def test_cancelling_one_who_waits_leaves_the_others() -> None:
    disk = Disk()
    commit = GroupCommit(disk.sync)
    first, second = asyncio.create_task(disk.write(commit)), asyncio.create_task(disk.write(commit))
    await turns()
    first.cancel()
    disk.go.release(2)
    await second
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize(
    ("durability", "synced"),
    [
        ("fsync", {".", "journal.log", "segment-000000.arrow"}),
        ("process", set()),
        ("memory", set()),
    ],
)
async def test_a_put_returns_when_all_its_files_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any, synced: set[str]
) -> None:
    seen: set[str] = set()

    def fsync(fd: int) -> None:
        seen.add(str(Path(f"/proc/self/fd/{fd}").readlink().relative_to(tmp_path)))

    monkeypatch.setattr(os, "fsync", fsync)
    clock = RolloutClock(
        rollout_batch_size=1, async_buffer_size=1, update_weights_interval=1, num_rollout=2
    )
    buffer = ReplayBuffer(
        tmp_path, AsyncConfig(async_buffer_size=1, buffer_durability=durability), clock
    )
    admission = await buffer.admit()
    sample = Sample(
        index=0,
        tokens=[1, 2],
        response_length=1,
        rollout_log_probs=[0.0],
        reward=0.0,
        status=Status.COMPLETED,
    )
    await buffer.put(
        Group(group_index=0, deadline=admission.deadline, admitted_version=0, samples=(sample,))
    )
    assert seen == synced
    buffer.close()
