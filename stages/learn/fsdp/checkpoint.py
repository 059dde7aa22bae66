"""Checkpoints through torch.distributed.checkpoint, as safetensors and JSON: nothing that is read
back is executed.

Every rank writes its shards; a checkpoint is readable with any number of ranks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from pipeline.core.errors import CheckpointError

FORMAT = 1
_ABOUT = "slipstream.json"


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes `tensors` (sharded) and `about` (JSON) as the folder `path`; every rank calls it.

    An older checkpoint is replaced."""
    if dist.get_rank() == 0:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    dist.barrier()
    dcp.save(
        dict(tensors), storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True)
    )
    if dist.get_rank() == 0:
        (path / _ABOUT).write_text(json.dumps({"format": FORMAT, **about}) + "\n", encoding="utf-8")
    dist.barrier()


def load(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads into `tensors`; returns the `about` that `save` was given. Raises CheckpointError,
    before anything is written, when `path` is not such a checkpoint or belongs to another model."""
    about = _about(path)
    there = _shapes(path)
    wanted = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != there:
        missing, surplus = sorted(set(wanted) - set(there)), sorted(set(there) - set(wanted))
        other = [
            f"{n} {list(there[n])} instead of {list(wanted[n])}"
            for n in sorted(wanted)
            if n in there and there[n] != wanted[n]
        ]
        said = [
            f"{w} {', '.join(n[:3])}"
            for w, n in (("missing", missing), ("surplus", surplus), ("shapes", other))
            if n
        ]
        raise CheckpointError(f"{path}: of another model: {'; '.join(said)}")
    try:
        dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(path)))
    except (
        dcp.api.CheckpointException,
        SafetensorError,
        KeyError,
        ValueError,
        RuntimeError,
        OSError,
    ) as error:
        raise CheckpointError(f"{path}: cannot be loaded: {error}") from error
    return about


def _about(path: Path) -> dict[str, Any]:
    if not (path / _ABOUT).is_file():
        megatron = path.parent / "torch_dist"
        hint = (
            f"; {megatron} was written with --train-backend megatron: go on with that, or start"
            f" from its weights with --hf-checkpoint {path.parent / 'hf'}"
            if megatron.is_dir()
            else ""
        )
        raise CheckpointError(
            f"{path}: no checkpoint of --train-backend fsdp ({_ABOUT} is missing){hint}"
        )
    try:
        about = json.loads((path / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / _ABOUT}: cannot be read as JSON: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / _ABOUT}: format"
            f" {about.get('format') if isinstance(about, dict) else about!r}, expected {FORMAT}"
        )
    return about


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Whole shapes by name, from the files' headers: the furthest end of any shard."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for file in sorted(path.glob("*.safetensors")):
            with safe_open(file, "pt") as shard:
                offsets = json.loads((shard.metadata() or {}).get("DCP_SHARDING_INFO", "{}"))
                for name in shard.keys():  # noqa: SIM118
                    size = shard.get_slice(name).get_shape()
                    at = offsets.get(name, {}).get("saved_offsets", [0] * len(size))
                    end = tuple(a + n for a, n in zip(at, size, strict=True))
                    shapes[name] = tuple(map(max, zip(end, shapes.get(name, end), strict=True)))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return shapes
