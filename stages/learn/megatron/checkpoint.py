"""Checkpoints: torch_dist (all that training needs to go on) and Hugging Face folders (what others
read)."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core import parallel_state as mpu
from megatron.core.dist_checkpointing.core import CheckpointingException
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from pipeline.core.errors import CheckpointError
from stages.learn import hf_folder, rendezvous
from stages.learn.hf_folder import (
    begin_hf_folder,
    finish_hf_folder,
    make_durable,
    part_of,
    write_hf_folder,
)
from stages.learn.hf_shards import Shards, write_shards
from stages.learn.megatron import compat, sharded, torch_dist
from stages.learn.megatron.adam import use_fused_adam

T = TypeVar("T")


def _model_meta() -> dict[str, Any]:
    return {"dp_cp_group": mpu.get_data_parallel_group(with_context_parallel=True)}


def _keys(models: Sequence[Any]) -> list[str]:
    return ["model"] if len(models) == 1 else [f"model{i}" for i in range(len(models))]


def _model_state(models: Sequence[Any]) -> dict[str, Any]:
    return {
        k: m.sharded_state_dict(metadata=_model_meta())
        for k, m in zip(_keys(models), models, strict=True)
    }


def _restore_models(models: Sequence[Any], state: dict[str, Any]) -> None:
    for key, model in zip(_keys(models), models, strict=True):
        model.load_state_dict(state[key])


def _state(built: Any, *, loading: bool) -> dict[str, Any]:
    """Megatron's sharded description of everything to save, readable under another data-parallel
    layout."""
    built.complete_optimizer_state()
    state = _model_state(built.models)
    meta = {
        **_model_meta(),
        "chained_optim_avoid_prefix": True,
        "distrib_optim_sharding_type": "fully_reshardable",
    }
    # Without is_loading a fresh optimizer has no state to load into, and would silently stay fresh.
    state["optimizer"] = built.optimizer.sharded_state_dict(
        state, is_loading=loading, metadata=meta
    )
    state["scheduler"] = built.scheduler.state_dict()
    return state


# what becomes of a sharded state: write_now, or async_save.torch_dist_job
Write = Callable[[dict[str, Any], Path], Any]


def save(built: Any, path: Path, *, optimizer: bool = True, write: Write | None = None) -> Any:
    """Writes weights and, with `optimizer`, optimizer and schedule under `path`; every rank calls
    it. An older checkpoint there is replaced."""
    with compat.cuda_methods():
        return _write(
            _state(built, loading=False) if optimizer else _model_state(built.models), path, write
        )


def save_models(models: Sequence[Any], path: Path, *, write: Write | None = None) -> Any:
    """Writes weights alone, as `save` does."""
    with compat.cuda_methods():
        return _write(_model_state(models), path, write)


def _write(state: dict[str, Any], path: Path, write: Write | None) -> Any:
    if dist.get_rank() == 0:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    dist.barrier()
    return (write or write_now)(state, path)


def write_now(state: dict[str, Any], path: Path) -> None:
    """Returns when it is on the disk, on every rank."""
    dist_checkpointing.save(state, str(path))
    if dist.get_rank() == 0:
        make_durable(path)
    dist.barrier()


def load(built: Any, path: Path, *, optimizer: bool = True) -> None:
    """Reads what `save` wrote; without `optimizer` weights alone. Raises CheckpointError when
    `path` is not such a checkpoint, or belongs to another model."""
    if not optimizer:
        load_models(built.models, path)
        built.optimizer.reload_model_params()
        return
    with _explained(path, "this model and optimizer"), compat.cuda_methods():
        if "scheduler" not in torch_dist.read_common(path):
            raise CheckpointError(
                f"{path} holds no optimizer (--no-save-optim): --no-load-optim goes on with a"
                " fresh one"
            )
        _check_optimizer(built, path)
        _restore(built, dist_checkpointing.load(_state(built, loading=True), str(path)))


def _check_optimizer(built: Any, path: Path) -> None:
    """Megatron's distributed optimizer keeps its float32 weights with its state; the others do not,
    or elsewhere."""
    with torch_dist.Reader(path) as held:
        saved = any(".state.param." in key for key in held.tensors)
    if saved != built.ddp[0].ddp_config.use_distributed_optimizer:
        said = [
            f"{'with' if flag else 'without'} --use-distributed-optimizer"
            for flag in (saved, not saved)
        ]
        raise CheckpointError(
            f"{path} was saved {said[0]}, this run is {said[1]}: use the same, or a fresh optimizer"
            " with --no-load-optim"
        )


def load_models(models: Sequence[Any], path: Path) -> None:
    """Loads the weights of any torch_dist checkpoint of this model, whatever layout and layer spec
    it was saved with. Raises CheckpointError that lists what is missing or of another shape; then
    nothing is loaded."""
    with _explained(path, "this model"), compat.cuda_methods(), torch_dist.Reader(path) as held:
        entries = [sharded.fitted_all(model, held) for model in models]
        found = sharded.compare(
            [e for part in entries for e in part.values()],
            held,
            num_words=models[0].num_words,
            whole=False,
        )
        if every := [text for text in rendezvous.gather_over_world(str(found)) if text]:
            raise CheckpointError(f"{path} does not fit this model: {every[0]}")
        loaded = dist_checkpointing.load(dict(zip(_keys(models), entries, strict=True)), str(path))
        for key, model in zip(_keys(models), models, strict=True):
            # Not strict: `_extra_state`, which is not loaded; all weights are there.
            model.load_state_dict(loaded[key], strict=False)


@contextlib.contextmanager
def _explained(path: Path, target: str) -> Iterator[None]:
    if not (path / "metadata.json").is_file():
        raise CheckpointError(
            f"{path}: no torch_dist checkpoint (metadata.json is missing); expected what --save"
            " wrote"
        )
    try:
        # refuses a pickle that names what it should not, before Megatron reads it
        torch_dist.read_metadata(path)
        yield
    except (
        CheckpointException,
        CheckpointingException,
        KeyError,
        ValueError,
        RuntimeError,
        OSError,
    ) as error:
        raise CheckpointError(f"{path}: cannot be loaded into {target}: {error}") from error


def _restore(built: Any, state: dict[str, Any]) -> None:
    _restore_models(built.models, state)
    optimizer = state["optimizer"]
    # one, or a chain of them
    for part in [optimizer] if "state" in optimizer else optimizer.values():
        entries = part.get("state", {}) if isinstance(part, dict) else {}
        if any(isinstance(e, dict) and "exp_avg" in e for e in entries.values()):
            # Megatron leaves out a step count of zero
            entries.setdefault("common_step", torch.zeros(()))
    built.optimizer.load_state_dict(optimizer)
    for loaded in built.torch_optimizers:
        use_fused_adam(loaded)
    built.scheduler.num_steps = 0  # Megatron adds the saved steps to those taken
    built.scheduler.load_state_dict(state["scheduler"])


def export_hf(
    weights: Iterator[tuple[str, Tensor]], source: Path, path: Path, *, write: bool
) -> None:
    """Writes a Hugging Face folder: `weights` as safetensors, and everything but weights copied
    from the folder `source`.

    All ranks iterate `weights` to the end; only the one with `write` touches the disk. The folder
    appears whole or not at all."""
    if write:
        write_hf_folder(weights, source, path)
    else:
        for _ in weights:
            pass


def publish_hf(weights: Iterator[tuple[str, Tensor]], source: Path, path: Path) -> None:
    """The same of the `weights` of all ranks, each of which writes its own, side by side. Raises on
    every rank when one cannot."""
    rank = dist.get_rank()

    def write() -> Shards:
        try:
            return write_shards(weights, part_of(path), hf_folder.MAX_SHARD_BYTES, writer=rank)
        finally:
            for _ in weights:  # other ranks are in there too
                pass

    try:
        _on_all(lambda: begin_hf_folder(source, path) if rank == 0 else None)
        shards = _on_all(write)
        _on_all(lambda: finish_hf_folder(shards, source, path) if rank == 0 else None)
    except CheckpointError:
        if rank == 0:
            shutil.rmtree(part_of(path), ignore_errors=True)
        raise


def _on_all(work: Callable[[], T]) -> list[T]:
    """The results of all ranks. Raises CheckpointError on every rank when one fails."""
    answer: tuple[T | None, str] = None, ""
    try:
        answer = work(), ""
    except (OSError, RuntimeError, SafetensorError, CheckpointError) as error:
        answer = None, f"{type(error).__name__}: {error}"
    answers = rendezvous.gather_over_world(answer)
    if failed := [f"rank {i}: {said}" for i, (_, said) in enumerate(answers) if said]:
        raise CheckpointError(f"the weights were not written: {'; '.join(failed)}")
    return [result for result, _ in answers]
