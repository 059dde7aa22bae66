"""What --load means: the run that goes on, and the checkpoint it goes on from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from configs.schema import RunConfig
from pipeline.core.errors import CheckpointError, ConfigError
from pipeline.core.find_run import find_run
from pipeline.run.rundir import RunDir, open_run_dir
from pipeline.run.snapshot import find_snapshot, rollouts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """A run without --load has none of the three."""

    snapshot: Path | None = None  # None with a home: nothing was saved, from the beginning
    home: RunDir | None = None  # the run that goes on; None: a new one begins
    ledger: Ledger | None = None  # of the journal in its home
    torn_bytes: int = 0  # of the journal's last line, cut off by a crash


def resume_point(run: RunConfig) -> ResumePoint:
    """What --load leads to: the same run goes on, with its journal and its records, or it is
    refused with what to do.

    Raises CheckpointError, ConfigError."""
    if run.load is None:
        return ResumePoint()
    given = Path(run.load)
    found = find_run(given)
    if found is None:
        return ResumePoint(snapshot=_adopted(run, find_snapshot(run.load)))
    home = open_run_dir(found)
    _check_name(run, home)
    journal = home.buffer / FILE_NAME
    ledger, torn = None, 0
    if journal.exists():
        entries, torn = read_journal(journal)
        ledger = Ledger(entries)
    elif not run.trains_on_kept:
        raise CheckpointError(
            f"--load {run.load}: the run {home.path} cannot go on, {journal} is not there. A new"
            f" run from its weights: --initial-megatron-checkpoint {home.path}"
        )
    snapshot = _snapshot(run, home, ledger)
    return ResumePoint(snapshot=snapshot, home=home, ledger=ledger, torn_bytes=torn)


def _snapshot(run: RunConfig, home: RunDir, ledger: Ledger | None) -> Path | None:
    """The checkpoint that was given; else the newest of those in --save (as it was, or as it is
    given now) and in the run's own folder."""
    assert run.load is not None
    given = Path(run.load)
    if given.resolve() != home.path and (
        (given / "state.json").exists() or (given / "latest").exists()
    ):
        return find_snapshot(run.load)
    looked_in = list(dict.fromkeys([*([Path(run.save)] if run.save else []), home.checkpoints]))
    found = [find_snapshot(str(folder)) for folder in looked_in if (folder / "latest").exists()]
    newest = max(found, key=rollouts_of, default=None)
    if ledger is not None and ledger.commits:
        num_trained, name = ledger.commits[-1]
        if newest is None or rollouts_of(newest) < num_trained:
            older = f", or go on from an older one: --load {newest}" if newest else ""
            raise CheckpointError(
                f"--load {run.load}: {name} was saved after {num_trained} rollouts, and is not in"
                f" {' or '.join(map(str, looked_in))}. Say where it lies: --load {run.load} --save"
                f" FOLDER{older}"
            )
    return newest


def _adopted(run: RunConfig, snapshot: Path) -> Path:
    """A checkpoint whose run is not there. Only a new --name says that a new run is meant."""
    if run.name is None:
        raise CheckpointError(
            f"--load {run.load}: no run directory belongs to this checkpoint (its journal and"
            " records are not beside it). If the run is elsewhere: --load RUN_DIR --save"
            f" {snapshot.parent}. To begin a new run from it, name that run: --load {run.load}"
            " --name NEW_NAME"
        )
    return snapshot


def _check_name(run: RunConfig, home: RunDir) -> None:
    """`q` may have become `q-2` when it was made."""
    if run.name is None or re.fullmatch(re.escape(run.name) + r"(-\d+)?", home.name):
        return
    raise ConfigError(
        f"--name {run.name} with --load {run.load}: a run goes on under its own name,"
        f" {home.name}. Leave --name out; a new run from its weights: --initial-megatron-checkpoint"
        f" {home.path}"
    )
