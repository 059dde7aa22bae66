"""Cutting a stream of named tensors into buckets, and the byte layout in which a bucket travels.

The layout is the one SGLang takes apart for `load_format="flattened_bucket"`: each tensor
contiguous, seen as bytes, one after the other in the order of its metadata, without padding. Types
may be mixed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TensorMeta = tuple[str, str, list[int]]  # name, dtype as in torch.<dtype>, shape


def split(
    tensors: Iterable[tuple[str, torch.Tensor]], max_bytes: int
) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Buckets of consecutive tensors, of at most `max_bytes` each; a tensor that alone is larger
    gets a bucket of its own."""
    bucket: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in tensors:
        if bucket and size + tensor.nbytes > max_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket


def flatten(
    bucket: Iterable[tuple[str, torch.Tensor]], device: torch.device
) -> tuple[list[TensorMeta], torch.Tensor]:
    """(metadata, the bytes in new memory on `device`: uint8 [sum of nbytes]).

    The tensors may change afterwards."""
    import torch

    bucket = list(bucket)
    metas: list[TensorMeta] = [
        (name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in bucket
    ]
    flat = torch.empty(sum(t.nbytes for _, t in bucket), dtype=torch.uint8, device=device)
    at = 0
    for _, tensor in bucket:
        flat[at : at + tensor.nbytes].copy_(
            tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        )
        at += tensor.nbytes
    return metas, flat
