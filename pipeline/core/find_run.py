"""Which run a folder belongs to that was given with --load. Reads names and one small file, nothing
bigger."""

from __future__ import annotations

import json
from pathlib import Path

# in a --save folder: the run whose checkpoints lie there
OWNER = "run.json"


def find_run(path: Path) -> Path | None:
    """The run directory that `path` means: itself, the one whose checkpoints (or one of whose
    checkpoints) it is, or the one that saves there. None where no such directory is."""
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
    """A kill may have come before a run had all of these."""
    return any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl"))


def is_checkpoint(folder: Path) -> bool:
    """A complete one, or a folder of such, or one that a crash cut off: whoever reads it tells."""
    places = (folder, folder / "latest", folder / "checkpoints" / "latest")
    return folder.name.startswith("rollout_") or any((at / "DONE").is_file() for at in places)


def owner_of(folder: Path) -> Path | None:
    """The run directory that a --save folder is marked with, whether or not it is still there."""
    try:
        return Path(json.loads((folder / OWNER).read_text(encoding="utf-8"))["run_dir"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
