"""Where the weights of a checkpoint lie: Hugging Face folders, our snapshots, Megatron-LM's
folders. Reads names, nothing bigger."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.core.errors import CheckpointError

Format = Literal["hf", "torch_dist", "torch"]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TRACKER = "latest_checkpointed_iteration.txt"  # Megatron-LM's: a number, or `release`


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    format: Format  # torch: Megatron's older one, mp_rank_XX/model_optim_rng.pt
    folder: Path  # the very folder that holds the files


def is_hub_name(spec: str) -> bool:
    """Is it OWNER/NAME, as on the Hugging Face Hub, and not a path on this machine?"""
    return bool(_HUB_NAME.fullmatch(spec)) and not Path(spec.split("/")[0]).exists()


def find_weights(path: Path, flag: str) -> Weights:
    """The weights that `path` leads to: a Hugging Face folder, a torch_dist folder, one of our
    snapshots, a run or its checkpoints folder (its latest), a folder with Megatron-LM's
    latest_checkpointed_iteration.txt, or an iter_XXXXXXX folder in it.

    Raises CheckpointError, which begins with `flag` and names what was looked for."""
    if not path.is_dir():
        raise CheckpointError(f"{flag} {path}: no such folder (working folder: {Path.cwd()})")
    for folder in _candidates(path, flag):
        if (folder / "metadata.json").is_file():
            _check_backend(folder, flag)
            return Weights(format="torch_dist", folder=folder)
        if next(folder.glob("mp_rank_*/model_optim_rng.pt"), None) or next(
            folder.glob("mp_rank_*/model_rng.pt"), None
        ):
            return Weights(format="torch", folder=folder)
        if (folder / "config.json").is_file():
            return Weights(format="hf", folder=folder)
    held = sorted(p.name for p in path.iterdir())[:6]
    raise CheckpointError(
        f"{flag} {path}: no checkpoint found; expected config.json (Hugging Face), metadata.json"
        f" (torch_dist), {TRACKER}, mp_rank_XX/model_optim_rng.pt or a run's checkpoints. It holds"
        f" {', '.join(held) or 'nothing'}"
    )


def find_torch_dist(path: Path, flag: str) -> Path:
    """The torch_dist folder that `path` leads to. Raises CheckpointError where there is none, and
    for other formats."""
    weights = find_weights(path, flag)
    if weights.format != "torch_dist":
        what = (
            "a Hugging Face folder"
            if weights.format == "hf"
            else "of Megatron's older `torch` format"
        )
        raise CheckpointError(
            f"{flag} {path} is {what}: expected torch_dist (python -m pipeline convert makes one)"
        )
    return weights.folder


def _candidates(path: Path, flag: str) -> Iterator[Path]:
    yield path
    yield path / "torch_dist"
    tracker = path / TRACKER
    if tracker.is_file():
        said = tracker.read_text(encoding="utf-8").strip()
        folder = path / (
            said if said == "release" else f"iter_{int(said):07d}" if said.isdigit() else "?"
        )
        if not folder.is_dir():
            raise CheckpointError(
                f"{flag} {path}: {TRACKER} says {said!r}, but there is no folder {folder.name}"
            )
        yield folder
    for latest in (path / "latest", path / "checkpoints" / "latest"):
        if (latest / "DONE").exists():
            yield latest.resolve() / "torch_dist"


def _check_backend(folder: Path, flag: str) -> None:
    try:
        backend = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))[
            "sharded_backend"
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{flag} {folder}/metadata.json: not Megatron's ({type(error).__name__}: {error})"
        ) from error
    if backend != "torch_dist":
        raise CheckpointError(
            f"{flag} {folder}: sharded_backend {backend!r}: Megatron-core 0.16 reads torch_dist"
            " only. Convert it with a release that still reads it (0.12 for zarr), or save it"
            " again with --ckpt-format torch_dist"
        )
