"""The whole model without memory: every weight's names and shapes, and where Megatron's formats
keep it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.core.errors import CheckpointError
from stages.learn.megatron import compat, parallel
from stages.learn.megatron.bridge import make_bridge


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One weight of Megatron's model, whole."""

    own: str  # in the model's state dict
    agreed: str  # by which the bridge knows it
    like: Tensor  # on the meta device: shape, and how tensor parallelism splits it
    hf: tuple[tuple[str, tuple[int, ...]], ...]  # Hugging Face names and shapes it is made of


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    bridge: Any
    model: Any
    weights: tuple[Weight, ...]

    def hf_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for weight in self.weights for name, shape in weight.hf}


@contextlib.contextmanager
def skeleton(origin: Path, dtype: torch.dtype) -> Iterator[Skeleton]:
    """The model that `origin`'s config.json describes, on one rank.

    There must be no process group. Raises CheckpointError.
    """
    compat.install()
    parallel.initialize({}, rank=0, world_size=1, store=None, device=torch.device("cpu"), seed=0)
    try:
        bridge = make_bridge(origin, dtype, {"use_cpu_initialization": True})
        with torch.device("meta"), compat.cuda_methods():
            (model,) = bridge.build()
        yield Skeleton(bridge=bridge, model=model, weights=tuple(_weights(bridge, model)))
    finally:
        parallel.shutdown()


def _weights(bridge: Any, model: Any) -> Iterator[Weight]:
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    seen: set[str] = set()
    for own, agreed in bridge.names(model).items():
        try:
            hf = tuple((name, tuple(t.shape)) for name, t in bridge.to_hf(agreed, tensors[own]))
        except NotImplementedError as error:
            raise CheckpointError(
                f"{bridge.hf_config.model_type}: Megatron's {agreed} has no Hugging Face name"
            ) from error
        if twice := seen.intersection(name for name, _ in hf):
            raise AssertionError(f"{agreed}: {twice} is made of another weight already")
        seen.update(name for name, _ in hf)
        yield Weight(own=own, agreed=agreed, like=tensors[own], hf=hf)
