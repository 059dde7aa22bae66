"""A --save folder belongs to one run, whose checkpoints lie there under one `latest`. A small file
in it names the run."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.core.errors import ConfigError
from pipeline.core.find_run import OWNER, is_run, owner_of
from pipeline.run.rundir import RunDir


def check_save_folder(save: str | None, home: RunDir | None) -> None:
    """`home`: the run that goes on, or None for a new one. Raises ConfigError when the folder is
    another run's."""
    if save is None:
        return
    folder, owner = Path(save), owner_of(Path(save))
    if owner is None:
        if home is None and (folder / "latest").exists():
            raise ConfigError(
                f"--save {save}: checkpoints of another run lie there. Give a folder of its own to"
                " each run"
            )
        return
    moved = not is_run(owner)
    if home is not None and (owner == home.path or (moved and owner.name == home.name)):
        return
    if moved and not (folder / "latest").exists():
        return  # of a run that never saved, and is gone
    raise ConfigError(
        f"--save {save}: the checkpoints there are of the run {owner}. Give another folder"
        + ("" if moved else f", or go on with that run: --load {owner}")
    )


def claim_save_folder(save: str | None, run_dir: RunDir) -> None:
    """Marks the folder as this run's. Raises ConfigError when it cannot be written."""
    if save is None:
        return
    folder = Path(save)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{OWNER}.new"
        new.write_text(json.dumps({"run_dir": str(run_dir.path.resolve())}) + "\n")
        new.replace(folder / OWNER)
    except OSError as e:
        raise ConfigError(
            f"--save {folder}: cannot be written ({e.strerror or e}); give another folder"
        ) from e
