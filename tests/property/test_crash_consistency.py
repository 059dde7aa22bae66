"""A finished run of the buffer, cut off at every byte of its files and restored; and its files,
damaged at random."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from buffers.replay_buffer import ReplayBuffer
from buffers.segments import scan
from configs.schema import AsyncConfig
from pipeline.core.errors import BufferCorruption
from pipeline.core.types import Group, Sample, Status, VersionSpan
from pipeline.schedule.clock import RolloutClock

CONFIG = AsyncConfig(async_buffer_size=1)
NUM_ROLLOUT, NUM_FUZZ = 3, 10_000


def new_clock() -> RolloutClock:
    return RolloutClock(
        rollout_batch_size=2,
        async_buffer_size=1,
        update_weights_interval=1,
        num_rollout=NUM_ROLLOUT,
    )


def group_of(clock: RolloutClock, index: int) -> Group:
    admission = clock.outstanding[index]
    sample = Sample(
        index=index,
        tokens=[index, index + 1],
        response_length=1,
        rollout_log_probs=[-0.5],
        reward=1.0,
        status=Status.COMPLETED,
        weight_versions=[VersionSpan(clock.policy_version, 0, 1)],
    )
    return Group(
        group_index=index,
        deadline=admission.deadline,
        admitted_version=admission.policy_version,
        samples=(sample,),
    )


@dataclass
class FinishedRun:
    folder: Path
    # (bytes of the journal when it was complete, rollouts, the clock's state)
    checkpoints: list[tuple[int, int, dict[str, Any]]]

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}


async def go_on(
    buffer: ReplayBuffer, clock: RolloutClock, until: int, discard: int | None = None
) -> list[int]:
    """Train up to rollout `until`; returns the groups that had to be generated."""
    generated: list[int] = []

    async def produce(index: int) -> None:
        if buffer.recall(index) is None:
            if index == discard:
                buffer.discard(index, "filtered: test")
                return
            generated.append(index)
            await buffer.put(group_of(clock, index))

    for index in list(clock.outstanding):
        if not buffer._decisions.is_ready(index):
            await produce(index)
    while clock.num_trained < until:
        while (admission := buffer.try_admit()) is not None:
            await produce(admission.group_index)
        rollout = clock.num_trained
        groups = await buffer.take(rollout)
        assert [list(s.tokens) for g in groups for s in g.samples] == [
            [g.group_index, g.group_index + 1] for g in groups
        ]
        clock.trained(rollout)
        buffer.pushing(clock.policy_version + 1)
        clock.pushed()
    return generated


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = tmp_path_factory.mktemp("finished")
    clock = new_clock()

    async def train() -> list[tuple[int, int, dict[str, Any]]]:
        buffer = ReplayBuffer(folder, CONFIG, clock)
        checkpoints = []
        await go_on(buffer, clock, 1, discard=3)
        checkpoints.append(((folder / FILE_NAME).stat().st_size, 1, clock.state_dict()))
        buffer.committed(1, "rollout_000001")
        await go_on(buffer, clock, 2)
        buffer._journal.close()  # and nothing else: as a crash leaves it
        return checkpoints

    return FinishedRun(folder, asyncio.run(train()))


def recover(finished: FinishedRun, folder: Path, journal_bytes: int) -> None:
    """Restore, go on to the end of the run, and look at the account."""
    clock, name = new_clock(), None
    for size, rollouts, state in finished.checkpoints:
        if journal_bytes >= size:
            clock.load_state_dict(state)
            name = f"rollout_{rollouts:06d}"
    entries, _ = read_journal(folder / FILE_NAME)
    before = Ledger(entries)
    complete = set(before.recallable()) | {
        g
        for g, a in before.accounts.items()
        if a.consumed and a.consumed[0][0] >= clock.num_trained
    }
    clock.skip_versions_until(before.policy_version)

    async def finish() -> list[int]:
        buffer = ReplayBuffer(folder, CONFIG, clock, ledger=before, restored_from=name)
        gone = {r["g"] for r in read_journal(folder / FILE_NAME)[0] if r["t"] == "gone"}
        generated = await go_on(buffer, clock, NUM_ROLLOUT)
        assert not set(generated) & (complete - gone), "complete groups were generated again"
        buffer.close()
        return generated

    asyncio.run(finish())
    totals = Ledger(read_journal(folder / FILE_NAME)[0]).totals()
    assert (totals["trained"], totals["lost"], totals["duplicated"]) == (2 * NUM_ROLLOUT, 0, 0)


def test_the_journal_cut_at_every_byte(finished: FinishedRun, tmp_path: Path) -> None:
    files = finished.files()
    for cut in range(len(files[FILE_NAME]) + 1):
        lay_out(tmp_path, {**files, FILE_NAME: files[FILE_NAME][:cut]})
        recover(finished, tmp_path, cut)


@pytest.mark.slow
def test_the_segments_cut_at_every_byte(finished: FinishedRun, tmp_path: Path) -> None:
    """As a power loss may, under durability `process`: lines whose bytes are gone."""
    files = finished.files()
    (name,) = files.keys() - {FILE_NAME}
    for cut in range(len(files[name]) + 1):
        lay_out(tmp_path, {**files, name: files[name][:cut]})
        recover(finished, tmp_path, len(files[FILE_NAME]))


def lay_out(folder: Path, files: dict[str, bytes]) -> None:
    """These and no others."""
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_named_and_never_silently_wrong(
    finished: FinishedRun, tmp_path: Path
) -> None:
    rng = random.Random(0)
    (segment,) = finished.folder.glob("segment-*.arrow")
    journal = finished.folder / FILE_NAME
    batches = dict(scan(segment))
    entries, _ = read_journal(journal)
    data = {p: p.read_bytes() for p in (segment, journal)}
    named = 0
    for number in range(NUM_FUZZ):
        source = rng.choice([segment, journal])
        damaged = bytearray(data[source])
        for _ in range(rng.choice([1, 1, 4, 64])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        path = tmp_path / source.name
        path.write_bytes(damaged)
        try:
            if source == journal:
                found, _ = read_journal(path)
                assert found == entries[: len(found)], f"damage {number} was read as other entries"
            else:
                for offset, batch in scan(path):
                    assert batch.equals(batches[offset]), (
                        f"damage {number} was read as another group"
                    )
        except BufferCorruption as e:
            assert str(path) in str(e)
            named += 1
    assert named > NUM_FUZZ // 2
