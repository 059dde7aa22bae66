"""Checkpoints as one atomic decision: the learner's files, the driver's state, then a DONE marker,
then `latest`.

`begin_snapshot` takes the state of one instant, `commit_snapshot` makes it the one in force when
all of it is on the disk: the same moment, or with --async-save some rollouts later.

checkpoints/rollout_000040/{torch_dist/, hf/, state.json, DONE}
checkpoints/latest -> rollout_000040
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import CheckpointError
from pipeline.core.protocols import Learner

STATE_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingSnapshot:
    """A snapshot that the learner may still be writing."""

    path: Path
    num_trained: int
    state: Mapping[str, Any]  # the driver's, of when it began


async def begin_snapshot(
    folder: Path,
    num_trained: int,
    learner: Learner,
    state: Mapping[str, Any],
    save_hf: str | None = None,
) -> PendingSnapshot:
    """Start the snapshot after `num_trained` rollouts; `save_hf` as --save-hf. Until it is
    committed the previous one is in force.

    A complete snapshot of that name (of another run that saved here) is neither overwritten nor
    mistaken for this one: the new one is called rollout_NNNNNN-2, and so on."""
    target = _free_name(folder, f"rollout_{num_trained:06d}")
    shutil.rmtree(target, ignore_errors=True)  # a torn one, without its marker
    target.mkdir(parents=True)
    hf = (
        None
        if save_hf is None
        else Path(save_hf.format(checkpoint=target, rollout_id=num_trained - 1))
    )
    await learner.save(target, hf)
    return PendingSnapshot(path=target, num_trained=num_trained, state=state)


def commit_snapshot(pending: PendingSnapshot) -> None:
    """The learner's files are on the disk: make this the snapshot in force.

    A crash at any instant leaves the previous one.
    """
    target = pending.path
    _write_durably(
        target / "state.json",
        json.dumps({"state_version": STATE_VERSION, **pending.state}, indent=1),
    )
    _write_durably(target / "DONE", f"{pending.num_trained}\n")
    _sync_folder(target)
    link = target.with_name("latest.new")
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    link.replace(target.with_name("latest"))
    _sync_folder(target.parent)


def find_snapshot(load: str) -> Path:
    """`load` is a run directory, a checkpoints folder or one snapshot.

    Raises CheckpointError naming what was looked for.
    """
    given = Path(load)
    for candidate in (given, given / "latest", given / "checkpoints" / "latest"):
        if (candidate / "DONE").exists():
            return candidate.resolve()
    torn = (
        "a snapshot without its DONE marker (torn by a crash); "
        if given.is_dir() and given.name.startswith("rollout_")
        else ""
    )
    raise CheckpointError(
        f"--load {load}: {torn}expected a run directory, its checkpoints folder, or a"
        " rollout_NNNNNN folder in it that holds a DONE marker"
    )


def rollouts_of(snapshot: Path) -> int:
    """How many rollouts a complete snapshot covers."""
    return int((snapshot / "DONE").read_text())


def read_state(snapshot: Path) -> dict[str, Any]:
    """The driver's state.

    Raises CheckpointError when it cannot be read, or another version wrote it.
    """
    try:
        state = json.loads((snapshot / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{snapshot}/state.json cannot be read: {error}. Load another snapshot"
        ) from error
    if state.get("state_version") != STATE_VERSION:
        raise CheckpointError(
            f"{snapshot}/state.json has state_version {state.get('state_version')}, this Slipstream"
            f" reads {STATE_VERSION}"
        )
    return state


def _free_name(folder: Path, name: str) -> Path:
    names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
    return next(folder / n for n in names if not (folder / n / "DONE").exists())


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
