"""Page-locked host memory, which a GPU copies from and to at full speed and on its own.

torch rounds what is asked of it up to a power of two (CachingHostAllocator), nearly twice as much
at worst, and nobody else gets what is locked. So it is asked for powers of two: a large buffer lies
in several of them, many small tensors in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = 1 << 20  # bytes of a piece: what is rounded up at most
BLOCK = 1 << 28  # bytes of a block for many tensors, where none is larger
ALIGNMENT = 256  # bytes


def pieces(num_bytes: int) -> list[int]:
    """Powers of two, large ones first, that together hold so many bytes and less than SMALLEST
    more."""
    units = -(-num_bytes // SMALLEST)
    return [SMALLEST << bit for bit in reversed(range(units.bit_length())) if units >> bit & 1]


class Shelf(NamedTuple):
    """Where tensors lie in blocks."""

    blocks: list[int]  # bytes of each
    places: list[tuple[int, int]]  # of each tensor: its block, and where it begins there


def shelve(sizes: Sequence[int]) -> Shelf:
    """Blocks of a power of two bytes for tensors of `sizes` bytes, each whole in the first that has
    room for it."""
    block = max(BLOCK, _power_of_two(max(sizes, default=0)))
    used: list[int] = []
    places = []
    for size in sizes:
        room = -(-size // ALIGNMENT) * ALIGNMENT
        at = next((i for i, taken in enumerate(used) if taken + room <= block), len(used))
        if at == len(used):
            used.append(0)
        places.append((at, used[at]))
        used[at] += room
    return Shelf([min(block, _power_of_two(taken)) for taken in used], places)


def empty_likes(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors on the host of the same shapes and types, to be copied from and to `device`."""
    if device.type != "cuda":
        return [torch.empty_like(t, device="cpu", requires_grad=False) for t in tensors]
    shelf = shelve([t.nbytes for t in tensors])
    blocks = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in shelf.blocks]
    return [
        blocks[block][start : start + t.nbytes].view(t.dtype).view(t.shape)
        for t, (block, start) in zip(tensors, shelf.places, strict=True)
    ]


def _power_of_two(num_bytes: int) -> int:
    return 1 << max(0, num_bytes - 1).bit_length()
