"""Checkpoints: torch_dist (all that training needs to go on) and Hugging Face folders (what others read)."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core import parallel_state as mpu
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from pipeline.errors import CheckpointError
from stages.learn.hf_folder import write_hf_folder
from stages.learn.megatron import compat


def _model_meta() -> dict[str, Any]:
    return {"dp_cp_group": mpu.get_data_parallel_group(with_context_parallel=True)}


def _keys(models: Sequence[Any]) -> list[str]:
    return ["model"] if len(models) == 1 else [f"model{i}" for i in range(len(models))]


def _model_state(models: Sequence[Any]) -> dict[str, Any]:
    return {k: m.sharded_state_dict(metadata=_model_meta()) for k, m in zip(_keys(models), models, strict=True)}


def _restore_models(models: Sequence[Any], state: dict[str, Any]) -> None:
    for key, model in zip(_keys(models), models, strict=True):
        model.load_state_dict(state[key])


def _state(built: Any, *, loading: bool) -> dict[str, Any]:
    """Megatron's sharded description of everything to save, readable under another data-parallel layout."""
    built.complete_optimizer_state()
    state = _model_state(built.models)
    meta = {**_model_meta(), "chained_optim_avoid_prefix": True, "distrib_optim_sharding_type": "fully_reshardable"}
    # Without is_loading a fresh optimizer has no state to load into, and would silently stay fresh.
    state["optimizer"] = built.optimizer.sharded_state_dict(state, is_loading=loading, metadata=meta)
    state["scheduler"] = built.scheduler.state_dict()
    return state


def save(built: Any, path: Path) -> None:
    """Write weights, optimizer and schedule under `path`; every rank calls it. An older checkpoint there is replaced."""
    with compat.cuda_methods():
        _write(_state(built, loading=False), path)


def save_models(models: Sequence[Any], path: Path) -> None:
    """Write weights alone, as `save` does."""
    with compat.cuda_methods():
        _write(_model_state(models), path)


def _write(state: dict[str, Any], path: Path) -> None:
    if dist.get_rank() == 0:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(state, str(path))
    dist.barrier()


def load(built: Any, path: Path) -> None:
    """Read what `save` wrote. Raises CheckpointError when `path` is no such checkpoint, or one of another model."""
    with _explained(path, "this model and optimizer"), compat.cuda_methods():
        _restore(built, dist_checkpointing.load(_state(built, loading=True), str(path)))


def load_models(models: Sequence[Any], path: Path) -> None:
    """Read what `save_models` wrote. Raises CheckpointError as `load` does."""
    with _explained(path, "this model"), compat.cuda_methods():
        _restore_models(models, dist_checkpointing.load(_model_state(models), str(path)))


@contextlib.contextmanager
def _explained(path: Path, target: str) -> Iterator[None]:
    if not (path / "metadata.json").is_file():
        raise CheckpointError(f"{path}: no torch_dist checkpoint (metadata.json is missing); expected what --save wrote")
    try:
        yield
    except (CheckpointException, CheckpointingException, KeyError, ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be loaded into {target}: {error}") from error


def _restore(built: Any, state: dict[str, Any]) -> None:
    _restore_models(built.models, state)
    optimizer = state["optimizer"]
    for part in [optimizer] if "state" in optimizer else optimizer.values():  # one, or a chain of them
        entries = part.get("state", {}) if isinstance(part, dict) else {}
        if any(isinstance(e, dict) and "exp_avg" in e for e in entries.values()):
            entries.setdefault("common_step", torch.zeros(()))  # Megatron leaves out a step count of zero
    built.optimizer.load_state_dict(optimizer)
    built.scheduler.load_state_dict(state["scheduler"])


def export_hf(weights: Iterator[tuple[str, Tensor]], source: Path, path: Path, *, write: bool) -> None:
    """Write a Hugging Face folder: `weights` as safetensors, everything but weights copied from the folder `source`.

    All ranks iterate `weights` to the end; only the one with `write` touches the disk. The folder appears whole or not at all.
    """
    if write:
        write_hf_folder(weights, source, path)
    else:
        for _ in weights:
            pass
