"""What an engine makes of a bucket."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch

from stages.publish.buckets import TensorMeta


def unflatten(
    metas: Iterable[TensorMeta], flat: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """The inverse of `put`, tensor after tensor."""
    at = 0
    for name, dtype_name, shape in metas:
        dtype: torch.dtype = getattr(torch, dtype_name)
        end = at + math.prod(shape) * dtype.itemsize
        yield name, flat[at:end].clone().view(dtype).reshape(shape)
        at = end
