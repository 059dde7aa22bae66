"""Cutting a list of tensors into buckets, and the byte layout in which a bucket travels.

The layout is the one SGLang takes apart for `load_format="flattened_bucket"`: each tensor
contiguous, seen as bytes, one after the other in the order of its metadata, without padding. Types
may be mixed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TensorMeta = tuple[str, str, list[int]]  # name, dtype as in torch.<dtype>, shape


def meta_of(name: str, tensor: torch.Tensor) -> TensorMeta:
    return name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)


def num_bytes(meta: TensorMeta) -> int:
    import torch

    _, dtype, shape = meta
    return math.prod(shape) * int(getattr(torch, dtype).itemsize)


def split(metas: Iterable[TensorMeta], max_bytes: int) -> list[list[TensorMeta]]:
    """Buckets of consecutive tensors, of at most `max_bytes` each; a tensor that alone is larger
    gets a bucket of its own."""
    buckets: list[list[TensorMeta]] = []
    size = max_bytes + 1
    for meta in metas:
        its = num_bytes(meta)
        if size + its > max_bytes:
            buckets.append([])
            size = 0
        buckets[-1].append(meta)
        size += its
    return buckets


def put(tensor: torch.Tensor, flat: torch.Tensor, at: int) -> int:
    """Copies `tensor` into `flat` (uint8) from byte `at` on; returns the byte behind it."""
    import torch

    tensor, end = tensor.detach(), at + tensor.nbytes
    room = flat[at:end]
    if at % tensor.dtype.itemsize == 0:
        room.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)
    else:  # it begins between two of its numbers
        room.copy_(tensor.contiguous().reshape(-1).view(torch.uint8), non_blocking=True)
    return end
