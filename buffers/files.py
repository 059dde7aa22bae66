"""A buffer's directory, opened: its journal, its segments, and what an earlier process left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from buffers.durability import GroupCommit
from buffers.journal import FILE_NAME, Journal
from buffers.ledger import Ledger
from buffers.recovery import Recovery
from buffers.segments import SegmentStore
from buffers.stored import StoredGroups
from configs.schema import AsyncConfig
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.replay_pool import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferFiles:
    """What a buffer works on. `commit`: what a put waits for under durability `fsync`.
    `replayable`: groups that were trained on before a restart and may be trained on again."""

    journal: Journal
    stored: StoredGroups
    recovery: Recovery
    commit: GroupCommit | None
    replayable: tuple[Entry, ...]


def open_files(
    directory: Path,
    config: AsyncConfig,
    clock: RolloutClock,
    *,
    max_segment_bytes: int,
    ledger: Ledger | None,
    restored_from: str | None,
) -> BufferFiles:
    """Opens the directory. `ledger`: made from the journal that lies there; without it everything
    that lies there is removed. Raises ReplayBufferError when the directory cannot be written."""
    directory.mkdir(parents=True, exist_ok=True)
    path, durability = directory / FILE_NAME, config.buffer_durability
    if ledger is None:
        path.unlink(missing_ok=True)
    journal = Journal(
        path, flush_each=durability != "memory", num_entries=ledger.num_entries if ledger else 0
    )
    recovery = Recovery(
        ledger,
        journal,
        clock,
        restored_from,
        max_times_sampled=config.max_times_sampled,
        keep_last=config.keep_last_rollouts,
    )
    store = SegmentStore(
        directory,
        max_segment_bytes,
        live=recovery.places(),
        keep=config.keep_trajectories,
        first_id=recovery.next_segment(),
    )
    store.sync_when_sealed = durability == "fsync"
    recovery.forget_what_is_gone(store)
    stored = StoredGroups(
        store, frees_at_once=durability == "memory", keep_last=config.keep_last_rollouts
    )
    replayable = recovery.replayable(store)
    stored.restore(
        clock.num_trained,
        {entry.candidate.group_index: place for entry, place in replayable},
        recovery.done(store),
    )
    commit = GroupCommit(lambda: stored.sync(journal.fd)) if store.sync_when_sealed else None
    return BufferFiles(
        journal=journal,
        stored=stored,
        recovery=recovery,
        commit=commit,
        replayable=tuple(entry for entry, _ in replayable),
    )
