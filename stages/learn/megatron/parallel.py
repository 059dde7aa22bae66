"""Process groups: rendezvous, Megatron's model-parallel state, and reductions over it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import Tensor

from pipeline.core.errors import ConfigError
from stages.learn.megatron import compat
from stages.learn.rendezvous import TIMEOUT, init_process_group

_SIZES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")


def check_sizes(values: Mapping[str, Any], world_size: int) -> int:
    """The data-parallel size. Raises ConfigError when the ranks cannot be laid out as asked."""
    sizes = [int(values.get(name, 1)) for name in _SIZES]
    product = sizes[0] * sizes[1] * sizes[2]
    if world_size % product:
        flags = " x ".join(
            f"--{n.replace('_', '-')} {s}" for n, s in zip(_SIZES, sizes, strict=True) if s > 1
        )
        raise ConfigError(
            f"{flags} needs a multiple of {product} learner ranks, got {world_size}: set"
            " --actor-num-gpus-per-node"
        )
    return world_size // product


def initialize(
    values: Mapping[str, Any],
    *,
    rank: int,
    world_size: int,
    store: dist.Store | None,
    device: torch.device,
    seed: int,
) -> None:
    """The default process group (gloo on CPU, NCCL on CUDA) and Megatron's groups.

    `store` None: a world of one.
    """
    check_sizes(values, world_size)
    init_process_group(device, rank=rank, world_size=world_size, store=store)
    with compat.shared_groups():
        mpu.initialize_model_parallel(
            *(int(values.get(name, 1)) for name in _SIZES[:2]),
            virtual_pipeline_model_parallel_size=values.get("virtual_pipeline_model_parallel_size"),
            context_parallel_size=int(values.get("context_parallel_size", 1)),
            expert_model_parallel_size=int(values.get("expert_model_parallel_size", 1)),
            expert_tensor_parallel_size=values.get("expert_tensor_parallel_size"),
            distributed_timeout_minutes=int(TIMEOUT.total_seconds() // 60),
        )
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    torch.manual_seed(seed)


def shutdown() -> None:
    """Leaves all groups; does nothing when there are none."""
    if dist.is_initialized():
        mpu.destroy_model_parallel()
        with contextlib.suppress(RuntimeError):  # a peer that died first has closed the sockets
            dist.destroy_process_group()


def reduce_metrics(
    sums: Tensor | None, maxima: Tensor | None, like: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Sums and maxima over the data-parallel ranks, given to every pipeline stage.

    Only the last stage has values; the others pass None and learn the shapes from `like`.
    Context-parallel ranks have the same values each (of whole samples), which count once."""
    group = mpu.get_data_parallel_group()
    sums, maxima = (like[0] if sums is None else sums), (like[1] if maxima is None else maxima)
    dist.all_reduce(sums, group=group)
    dist.all_reduce(maxima, op=dist.ReduceOp.MAX, group=group)
    if mpu.get_pipeline_model_parallel_world_size() > 1:
        both, last = torch.cat([sums, maxima]), mpu.get_pipeline_model_parallel_last_rank()
        dist.broadcast(both, src=last, group=mpu.get_pipeline_model_parallel_group())
        sums, maxima = both[: len(sums)], both[len(sums) :]
    return sums, maxima


def gather_over_data_ranks(value: Any) -> list[Any]:
    """The `value` (small, picklable) of every data-parallel rank of this pipeline stage."""
    group = mpu.get_data_parallel_group()
    out: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(out, value, group=group)
    return out


def is_last_stage() -> bool:
    return bool(mpu.is_pipeline_last_stage(ignore_virtual=True))


def reports() -> bool:
    """Is this the rank of its model copy that reports what was found? That is the first tensor and
    context rank of the last pipeline stage."""
    return (
        is_last_stage()
        and mpu.get_tensor_model_parallel_rank() == 0
        and mpu.get_context_parallel_rank() == 0
    )
