"""Which run a folder given with --load belongs to. Only names and one small file are read."""

from __future__ import annotations

import json
from pathlib import Path

# in a --save folder: the run whose checkpoints lie there
OWNER = "run.json"


def find_run(path: Path) -> Path | None:
    """The run directory that `path` leads to: `path` itself, the run whose checkpoints folder or
    checkpoint it is, or the run that saves there. None where there is no such directory."""
    if is_run(path):
        return path.resolve()
    if not path.is_dir():
        return None
    for folder in (path, path.resolve().parent):
        owner = owner_of(folder)
        if owner is not None and is_run(owner):
            return owner
    checkpoints = path.resolve()
    if (checkpoints / "state.json").exists():  # one checkpoint
        checkpoints = checkpoints.parent
    home = checkpoints.parent
    return home if checkpoints.name == "checkpoints" and is_run(home) else None


def is_run(folder: Path) -> bool:
    """Is it a run directory? One of its files is enough: a kill may have come before it had all."""
    return any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl"))


def is_checkpoint(folder: Path) -> bool:
    """Is it a checkpoint, a folder of checkpoints, or one that a crash cut off? Whoever reads it
    tells which."""
    places = (folder, folder / "latest", folder / "checkpoints" / "latest")
    return folder.name.startswith("rollout_") or any((at / "DONE").is_file() for at in places)


def owner_of(folder: Path) -> Path | None:
    """The run directory that is named in a --save folder, whether or not it is still there."""
    try:
        return Path(json.loads((folder / OWNER).read_text(encoding="utf-8"))["run_dir"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
