"""The folder that a teacher's engine serves."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from pipeline.core.errors import CheckpointError
from pipeline.models.resolve import resolve_checkpoint

logger = logging.getLogger(__name__)


def teacher_folder(spec: str, policy: Path, place: Path, *, seed: int) -> Path:
    """--opd-teacher-load as a Hugging Face folder. A torch_dist checkpoint, as slime's teachers
    are, is converted into `place` by the configuration of the policy, whose architecture it has.

    Raises CheckpointError."""
    folder = Path(spec).expanduser()
    if not folder.is_dir() or (folder / "config.json").is_file():
        return resolve_checkpoint(spec, seed=seed)
    if not (place / "config.json").is_file():  # else a run goes on
        logger.info("the teacher %s is converted into %s, for its engine", folder, place)
        _convert(folder, policy, place)
    return place


def _convert(folder: Path, policy: Path, place: Path) -> None:
    """In a process of its own: the driver has neither Megatron nor the weights in its memory."""
    words = ("--input", folder, "--hf-checkpoint", policy, "--output", place)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "convert", "torch-dist-to-hf", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no word"]
        raise CheckpointError(
            f"--opd-teacher-load {folder} cannot be converted for an engine: {said[-1]}"
        )
