"""Megatron-core 0.16.1 and 0.19.2 on a machine without CUDA.

Megatron writes `device="cuda"` and `torch.cuda.current_device()` in places that a CPU run passes
too. `install()` gives those Megatron modules (and mbridge's helpers), and nobody else, a view of
torch in which "cuda" means the CPU; torch itself stays as it is. Five more spots need a word of
their own, each explained below. With a CUDA device `install()` does nothing of that. What is
missing with TransformerEngine, on either, is without_te.py's."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import queue
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from pipeline.core.devices import has_gpu
from pipeline.core.errors import LearnerError
from stages.learn.megatron import without_te

SUPPORTED = ("0.16.1", "0.19.2")
# Modules on the paths that we run (model, schedules, optimizer, checkpoints) that name the CUDA
# device.
_MODULES = (
    "megatron.core.dist_checkpointing.strategies.filesystem_async",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
    "megatron.core.distributed.distributed_data_parallel",
    "megatron.core.distributed.param_and_grad_buffer",
    "megatron.core.models.common.embeddings.rotary_pos_embedding",
    "megatron.core.models.common.embeddings.yarn_rotary_pos_embedding",
    "megatron.core.models.common.language_module.language_module",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.distrib_optimizer",
    "megatron.core.optimizer.optimizer",
    "megatron.core.parallel_state",
    "megatron.core.pipeline_parallel.p2p_communication",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.tensor_parallel.layers",
    "megatron.core.tensor_parallel.mappings",
    "megatron.core.tensor_parallel.random",
    "megatron.core.tensor_parallel.utils",
    "megatron.core.transformer.attention",
    "megatron.core.transformer.mlp",
    "megatron.core.transformer.module",
    "megatron.core.transformer.moe.moe_utils",
    "megatron.core.transformer.moe.router",
    "megatron.core.transformer.moe.token_dispatcher",
    "megatron.core.utils",
    "mbridge.core.util",
)
_FACTORIES = ("arange", "empty", "empty_like", "full", "ones", "tensor", "zeros", "zeros_like")
_installed = False


class _View(ModuleType):
    """A module seen with some names replaced.

    The names are copied, so looking one up costs what it costs in the original.
    """

    def __init__(self, original: ModuleType, **replaced: Any) -> None:
        super().__init__(original.__name__, original.__doc__)
        self.__dict__.update({**vars(original), **replaced})
        self.__dict__["_original"] = original

    def __getattr__(self, name: str) -> Any:  # names that torch makes when first asked for
        return getattr(self.__dict__["_original"], name)


def prepare_environment() -> None:
    """Call this before torch is imported in a process that will train; it does nothing where CUDA
    devices are to be seen.

    Megatron's fusions are torch.compile'd functions; compiling them for every new shape costs far
    more than they save on a CPU."""
    if not has_gpu():
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def install() -> bool:
    """Makes Megatron run on this machine. Returns True when the CPU view is in place, False on a
    CUDA machine (where only what TransformerEngine would bring is filled in).

    It may be called more than once. Raises LearnerError for a Megatron version that this was not
    written for, or a TransformerEngine that cannot be imported."""
    global _installed
    import torch

    if has_gpu():
        without_te.install()
        return False
    if _installed:
        return True
    megatron = importlib.import_module("megatron.core")
    # what follows a plus is the commit of whatever repository the process was started in
    if megatron.__version__.partition("+")[0] not in SUPPORTED:
        raise LearnerError(
            f"megatron-core {megatron.__version__} on a machine without CUDA: only"
            f" {' and '.join(SUPPORTED)} are known to work"
        )
    view = _cpu_view(torch)
    for name in _MODULES:
        vars(importlib.import_module(name))["torch"] = view
    _patch_random(torch)
    _patch_clipping(torch)
    _patch_checkpoint_writer()
    _patch_experts(torch)
    _patch_uneven_collectives(torch)
    without_te.install()
    _installed = True
    return True


@contextlib.contextmanager
def cuda_methods() -> Iterator[None]:
    """Within, where `install()` is in place: `tensor.cuda()` is the tensor, and `tensor.type()`
    answers as for a CUDA tensor.

    Megatron's optimizers sort parameters by that text, and move checkpoint shards that way. Not for
    the model's path: every torch call within passes through Python."""
    if not _installed:
        yield
        return
    import torch
    from torch.overrides import TorchFunctionMode

    class CpuAsCuda(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.Tensor.cuda:
                return args[0]
            out = func(*args, **(kwargs or {}))
            return (
                out.replace("torch.", "torch.cuda.", 1)
                if func is torch.Tensor.type and len(args) == 1 and not kwargs
                else out
            )

    with CpuAsCuda():
        yield


@contextlib.contextmanager
def shared_groups() -> Iterator[None]:
    """Within, where `install()` is in place: Megatron's process groups of the same ranks are one
    group.

    Megatron makes some twenty, most of them of the same ranks when there are few. To NCCL an idle
    group is nothing; gloo has three threads for each, one of which wakes a hundred times a second,
    and a handshake over the store. Every rank asks for the same groups in the same order, and the
    calls in a group stay in the order in which each rank makes them."""
    if not _installed:
        yield
        return
    state = vars(importlib.import_module("megatron.core.parallel_state"))
    create, made = state["create_group"], {}

    def shared(ranks: Any = None, *args: Any, **kwargs: Any) -> Any:
        key = tuple(ranks)
        if key not in made:
            made[key] = create(ranks, *args, **kwargs)
        return made[key]

    state["create_group"] = shared
    try:
        yield
    finally:
        state["create_group"] = create


def _cpu_view(torch: Any) -> _View:
    cpu = torch.device("cpu")

    def on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(factory)
        def make(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> Any:
            del pin_memory  # page-locked memory exists for copies to a GPU
            return factory(
                *args, device=cpu if str(device).startswith("cuda") else device, **kwargs
            )

        return make

    def nothing(*_args: Any, **_kwargs: Any) -> None:
        return None

    cuda = _View(
        torch.cuda,
        current_device=lambda: cpu,
        current_stream=nothing,  # asked for, and used only where a CUDA graph was replayed
        synchronize=nothing,
        empty_cache=nothing,
        manual_seed=torch.manual_seed,
    )
    # the token dispatcher keeps one; _patch_experts says why it is never used
    cuda.__dict__["Stream"] = nothing
    cuda.__dict__["get_rng_state"] = lambda device=None: torch.get_rng_state()
    return _View(torch, cuda=cuda, **{name: on_cpu(getattr(torch, name)) for name in _FACTORIES})


def _patch_random(torch: Any) -> None:
    """The generator whose state Megatron saves around recomputed layers and parallel regions is the
    CPU's."""
    random: Any = importlib.import_module("megatron.core.tensor_parallel.random")
    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: (
        torch.get_rng_state()
    )
    random._set_cuda_rng_state = lambda new_state, device=-1, graph_safe=False: torch.set_rng_state(
        new_state
    )


def _patch_clipping(torch: Any) -> None:
    """Megatron's clipping asserts CUDA gradients; without apex it is this one multiplication
    anyhow."""

    def clip(
        parameters: Any, max_norm: float, total_norm: float, use_decoupled_grad: bool = False
    ) -> None:
        grads = [p.grad for p in parameters if p.grad is not None]
        if grads and (scale := max_norm / (total_norm + 1e-6)) < 1.0:
            torch._foreach_mul_(grads, scale)

    for name in ("clip_grads", "optimizer"):
        vars(importlib.import_module(f"megatron.core.optimizer.{name}"))[
            "clip_grad_by_total_norm_fp32"
        ] = clip


def _patch_checkpoint_writer() -> None:
    """A synchronous save needs no multiprocessing manager (three seconds, and a child that outlives
    a killed parent)."""
    writer: Any = importlib.import_module(
        "megatron.core.dist_checkpointing.strategies.filesystem_async"
    )
    writer._results_queue = queue.Queue()


def _patch_experts(torch: Any) -> None:
    """Dispatchers copy the expert counts to the host on a side stream.

    The counts are on the host: what is left of the copy is that all_to_all wants its splits as
    numbers, not as tensors."""
    cls: Any = importlib.import_module(
        "megatron.core.transformer.moe.token_dispatcher"
    ).MoEAlltoAllTokenDispatcher

    def splits_as_numbers(self: Any, point: str, tokens_per_expert: Any = None) -> Any:
        if not self.drop_and_pad and point == self.cuda_dtoh_point:
            for name in ("input_splits", "output_splits", "output_splits_tp"):
                value = getattr(self, name)
                if torch.is_tensor(value):
                    setattr(self, name, value.numpy())
        return tokens_per_expert

    cls._maybe_dtoh_and_synchronize = splits_as_numbers


def _patch_uneven_collectives(torch: Any) -> None:
    """Experts split over tensor ranks exchange as many tokens as each has; gloo wants equal shapes,
    so they are padded."""
    mappings: Any = importlib.import_module("megatron.core.tensor_parallel.mappings")
    gather, reduce_scatter = (
        mappings._gather_along_first_dim,
        mappings._reduce_scatter_along_first_dim,
    )

    def padded(x: Any, length: int) -> Any:
        return torch.cat([x, x.new_zeros(length - x.shape[0], *x.shape[1:])])

    def gather_uneven(
        input_: Any, group: Any, output_split_sizes: Any = None, use_global_buffer: bool = False
    ) -> Any:
        if output_split_sizes is None or group.size() == 1:
            return gather(input_, group, None, use_global_buffer)
        longest = max(output_split_sizes)
        parts = gather(padded(input_, longest), group).split(longest) if longest else ()
        return (
            torch.cat([p[:n] for p, n in zip(parts, output_split_sizes, strict=True)])
            if parts
            else input_
        )

    def reduce_scatter_uneven(
        input_: Any, group: Any, input_split_sizes: Any = None, use_global_buffer: bool = False
    ) -> Any:
        if input_split_sizes is None or group.size() == 1:
            return reduce_scatter(input_, group, None, use_global_buffer)
        longest = max(input_split_sizes)
        parts = [padded(p, longest) for p in input_.split(input_split_sizes)]
        return (
            reduce_scatter(torch.cat(parts), group)[: input_split_sizes[group.rank()]]
            if longest
            else input_
        )

    mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim = (
        gather_uneven,
        reduce_scatter_uneven,
    )
