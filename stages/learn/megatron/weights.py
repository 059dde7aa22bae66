"""Weights in and out: from safetensors to this rank's shards, and from this rank's shards to whole
tensors on every rank.

What is split over tensor ranks is cut along its partition dimension; a gated linear_fc1 holds gate
and up one above the other, and each half is cut. Experts are split over the expert-tensor group,
and live on one expert-parallel rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor

from pipeline.core.errors import CheckpointError
from stages.learn.hf_folder import HfFolder, listed
from stages.learn.megatron.hf_check import check_hf_weights
from stages.learn.megatron.names import expert_of, is_expert, weights_of


def load_hf_weights(bridge: Any, models: Sequence[torch.nn.Module], path: Path) -> None:
    """Fills `models` from the safetensors under `path`. Raises CheckpointError that lists what is
    missing or of another shape.

    Every rank reads what it needs by itself. Nothing is written when a tensor is missing; a wrong
    shape shows while loading."""
    check_hf_weights(bridge, models, path)
    try:
        folder = HfFolder(path)
        wanted = [
            (bridge.hf_names(agreed), agreed, weights_of(m)[own])
            for m in models
            for own, agreed in bridge.names(m).items()
        ]
        wrong = []
        for hf_names, agreed, target in wanted:
            whole = bridge.to_megatron(agreed, [folder[n] for n in hf_names])
            part = whole if whole is None else own_part(bridge.config, agreed, whole, target)
            if part is None or part.shape != target.shape:
                wrong.append(f"{' + '.join(hf_names)} {[list(folder[n].shape) for n in hf_names]}")
            else:
                target.detach().copy_(part)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{path}: the safetensors do not fit config.json: {error}") from error
    if wrong:
        raise CheckpointError(
            f"{path}: the safetensors do not fit config.json: wrong shapes: {listed(wrong)}"
        )


def gather_hf_weights(
    bridge: Any, models: Sequence[torch.nn.Module]
) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, whole tensor) of every weight, gathered over tensor, expert and pipeline
    ranks.

    Every rank of the model-parallel group must iterate to the end, and every one gets the tensors.
    They may share memory with the model: copy before the next step."""
    own = {
        agreed: weights_of(m)[name].detach()
        for m in models
        for name, agreed in bridge.names(m).items()
    }
    dims = {
        agreed: split_dim(bridge.config, agreed, weights_of(m)[name])
        for m in models
        for name, agreed in bridge.names(m).items()
    }
    seen: set[str] = set()
    for name, tensor, dim in _over_pipeline(own, dims):
        whole = (
            merged(bridge.config, name, _over_tensor_ranks(tensor, expert=is_expert(name)), dim)
            if dim is not None
            else tensor
        )
        for global_name, weight in _over_expert_ranks(bridge.config, name, whole):
            for hf_name, hf_weight in bridge.to_hf(global_name, weight):
                if hf_name not in seen:  # tied embeddings live on the first and the last stage
                    seen.add(hf_name)
                    yield hf_name, hf_weight


def split_dim(config: Any, name: str, tensor: Tensor) -> int | None:
    """The dimension along which the weight of this agreed name is split over the (expert-)tensor
    ranks, if it is."""
    if is_expert(name):  # by name: TransformerEngine's grouped weights do not say
        return 1 if ".linear_fc2.weight" in name else 0 if ".linear_fc1." in name else None
    if not getattr(tensor, "tensor_model_parallel", False) or (
        config.transformer_impl == "transformer_engine" and "_down_proj." in name
    ):
        return None  # TransformerEngine keeps MLA's down projections whole, and marks them as split
    dim: int = tensor.partition_dim
    return dim


def _is_gated(config: Any, name: str) -> bool:
    return bool(config.gated_linear_unit) and ".linear_fc1." in name and "layer_norm" not in name


def own_part(config: Any, name: str, whole: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of `whole`, in Megatron's layout."""
    dim = split_dim(config, name, like)
    size = (
        mpu.get_expert_tensor_parallel_world_size()
        if is_expert(name)
        else mpu.get_tensor_model_parallel_world_size()
    )
    if dim is None or size == 1:
        return whole
    rank = (
        mpu.get_expert_tensor_parallel_rank()
        if is_expert(name)
        else mpu.get_tensor_model_parallel_rank()
    )
    if _is_gated(config, name):
        return torch.cat([half.chunk(size, 0)[rank] for half in whole.chunk(2, 0)])
    return whole.chunk(size, dim)[rank]


def merged(config: Any, name: str, parts: list[Tensor], dim: int) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    if _is_gated(config, name):
        halves = [part.chunk(2, 0) for part in parts]
        return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])
    return torch.cat(parts, dim)


def _over_pipeline(
    own: dict[str, Tensor], dims: dict[str, int | None]
) -> Iterator[tuple[str, Tensor, int | None]]:
    """(name, this tensor rank's tensor, the dimension it is split along) of all pipeline stages, in
    their order."""
    if mpu.get_pipeline_model_parallel_world_size() == 1:
        for name, tensor in own.items():
            yield name, tensor, dims[name]
        return
    group = mpu.get_pipeline_model_parallel_group()
    stages: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(
        stages, [(n, tuple(t.shape), t.dtype, dims[n]) for n, t in own.items()], group=group
    )
    device = next(iter(own.values())).device
    for stage, entries in enumerate(stages):
        mine = stage == mpu.get_pipeline_model_parallel_rank()
        for name, shape, dtype, dim in entries:
            tensor = own[name] if mine else torch.empty(shape, dtype=dtype, device=device)
            dist.broadcast(tensor, src=dist.get_global_rank(group, stage), group=group)
            yield name, tensor, dim


def _over_tensor_ranks(tensor: Tensor, *, expert: bool) -> list[Tensor]:
    size = (
        mpu.get_expert_tensor_parallel_world_size()
        if expert
        else mpu.get_tensor_model_parallel_world_size()
    )
    if size == 1:
        return [tensor]
    return _all_gather(
        tensor,
        size,
        mpu.get_expert_tensor_parallel_group() if expert else mpu.get_tensor_model_parallel_group(),
    )


def _over_expert_ranks(config: Any, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """One expert of each expert-parallel rank with its global name; anything else as it is."""
    size = mpu.get_expert_model_parallel_world_size()
    if size == 1 or not is_expert(name):
        yield name, tensor
        return
    stem, number = expert_of(name)
    each = config.num_moe_experts // size
    for rank, part in enumerate(_all_gather(tensor, size, mpu.get_expert_model_parallel_group())):
        yield f"{stem}{rank * each + number % each}", part


def _all_gather(tensor: Tensor, size: int, group: Any) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(size)]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return parts
