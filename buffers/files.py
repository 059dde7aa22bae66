"""A buffer's directory, opened: its journal, its segments, and what an earlier process left, or an
earlier learner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from buffers.durability import GroupCommit
from buffers.journal import FILE_NAME, Journal, read_journal
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
    recovery = _recovery(ledger, journal, config, clock, restored_from)
    store = SegmentStore(
        directory,
        max_segment_bytes,
        live=recovery.places(),
        keep=config.keep_trajectories,
        first_id=recovery.next_segment(),
    )
    store.sync_when_sealed = durability == "fsync"
    commit = GroupCommit(lambda: store.sync(journal.fd)) if store.sync_when_sealed else None
    return _restored(journal, store, recovery, config, clock, commit)


def rewind_files(
    files: BufferFiles, config: AsyncConfig, clock: RolloutClock, restored_from: str | None
) -> BufferFiles:
    """What is left when the run goes back to a checkpoint and does not end: what a process that
    opens the directory would find, in the files as they are open. Groups may be written to them
    before and after."""
    journal, store = files.journal, files.stored.store
    journal.flush()
    entries, _ = read_journal(journal.path)
    recovery = _recovery(Ledger(entries), journal, config, clock, restored_from)
    store.keep_only(recovery.places())
    return _restored(journal, store, recovery, config, clock, files.commit)


def _recovery(
    ledger: Ledger | None,
    journal: Journal,
    config: AsyncConfig,
    clock: RolloutClock,
    restored_from: str | None,
) -> Recovery:
    return Recovery(
        ledger,
        journal,
        clock,
        restored_from,
        max_times_sampled=config.max_times_sampled,
        keep_last=config.keep_last_rollouts,
    )


def _restored(
    journal: Journal,
    store: SegmentStore,
    recovery: Recovery,
    config: AsyncConfig,
    clock: RolloutClock,
    commit: GroupCommit | None,
) -> BufferFiles:
    recovery.forget_what_is_gone(store)
    stored = StoredGroups(
        store,
        frees_at_once=config.buffer_durability == "memory",
        keep_last=config.keep_last_rollouts,
    )
    replayable = recovery.replayable(store)
    stored.restore(
        clock.num_trained,
        {entry.candidate.group_index: place for entry, place in replayable},
        recovery.done(store),
    )
    return BufferFiles(
        journal=journal,
        stored=stored,
        recovery=recovery,
        commit=commit,
        replayable=tuple(entry for entry, _ in replayable),
    )
