"""Host memory in powers of two: what torch would round up anyhow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.learn import page_locked
from stages.learn.page_locked import BLOCK, SMALLEST, empty_likes, pieces, shelve

MIB = 1 << 20


@given(st.integers(0, 1 << 40))
def test_pieces_hold_all_of_it_and_hardly_more(num_bytes: int) -> None:
    found = pieces(num_bytes)
    assert 0 <= sum(found) - num_bytes < SMALLEST
    assert all(size & (size - 1) == 0 for size in found)
    assert sorted(found, reverse=True) == found and len(set(found)) == len(found)


def test_a_buffer_of_five_gibibytes_takes_five() -> None:
    assert pieces(5 << 30) == [4 << 30, 1 << 30]


@given(st.lists(st.integers(0, 3 * BLOCK), max_size=40))
def test_tensors_lie_apart_in_blocks_of_a_power_of_two(sizes: list[int]) -> None:
    shelf = shelve(sizes)
    assert all(size & (size - 1) == 0 for size in shelf.blocks)
    ends = [0] * len(shelf.blocks)
    for (block, start), size in zip(shelf.places, sizes, strict=True):
        assert start % page_locked.ALIGNMENT == 0 and start >= ends[block]
        ends[block] = start + size
        assert ends[block] <= shelf.blocks[block]


def test_a_models_weights_take_little_more_than_their_bytes() -> None:
    """An 8B's: an embedding of 1.2 GB, and 36 layers of which none is a power of two."""
    layer = [50331648, 8388608, 33554432, 100663296, 100663296, 100663296, 8192, 8192]
    sizes = [1244659712, *layer * 36, 8192, 1244659712]
    assert sum(shelve(sizes).blocks) < 1.15 * sum(sizes)
    alone = sum(1 << (size - 1).bit_length() for size in sizes)
    assert alone > 1.3 * sum(sizes)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_host_tensors_are_like_those_of_the_device(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = torch.empty

    def empty(*args: int, pin_memory: bool = False, **kwargs: torch.dtype) -> torch.Tensor:
        asked.append((args, pin_memory))
        return real(*args, **kwargs)  # type: ignore[no-any-return, call-overload]

    monkeypatch.setattr(torch, "empty", empty)
    like = [torch.ones(3, 5, dtype=torch.bfloat16), torch.ones(()), torch.ones(7, 2)]
    made = empty_likes(like, torch.device(device))
    assert [(t.shape, t.dtype, t.device.type) for t in made] == [
        (t.shape, t.dtype, "cpu") for t in like
    ]
    for kept, t in zip(made, like, strict=True):
        kept.copy_(t)
    assert all(torch.equal(kept, t) for kept, t in zip(made, like, strict=True))
    assert asked == ([((1024,), True)] if device == "cuda" else [])
