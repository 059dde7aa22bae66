"""The way from old bits to new ones, chunk by chunk: exact, and refused where it is none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import WeightSyncError
from stages.publish.delta_codec import Bits, Chunk, decode, encode

TYPES = (np.uint8, np.uint16, np.uint32, np.uint64)


def applied(chunk: Chunk, old: Bits) -> Bits:
    bits = old.copy()
    decode(chunk, bits)
    return bits


def bits_of(rng: np.random.Generator, number: int, dtype: type) -> Bits:
    return rng.integers(0, np.iinfo(dtype).max, number, dtype, endpoint=True)


@given(
    seed=st.integers(0, 1 << 30),
    number=st.integers(1, 3000),
    share=st.sampled_from([0.0, 0.001, 0.03, 0.3, 0.6, 0.9, 1.0]),
    dtype=st.sampled_from(TYPES),
    near=st.booleans(),
)
def test_every_bit_comes_out(seed: int, number: int, share: float, dtype: type, near: bool) -> None:
    """Any bit pattern, so NaN payloads, infinities and signed zeros too."""
    rng = np.random.default_rng(seed)
    old = bits_of(rng, number, dtype)
    wild = old + dtype(1) if near else bits_of(rng, number, dtype)
    new = np.where(rng.random(number) < share, wild, old)
    chunk = encode(old, new)
    assert np.array_equal(applied(chunk, old), new)
    assert (chunk.kind == "same") == bool(np.array_equal(old, new))
    full = encode(None, new)
    assert full.kind == "full" and np.array_equal(applied(full, np.zeros_like(new)), new)
    assert len(chunk.blob) <= len(full.blob) + 16 or share < 0.5


@pytest.mark.parametrize(
    ("share", "wild", "kind"), [(0.01, True, "sparse"), (1.0, False, "dense"), (1.0, True, "full")]
)
def test_the_smallest_form_is_taken(share: float, wild: bool, kind: str) -> None:
    rng = np.random.default_rng(0)
    # two thirds of all patterns: what differs at random is then larger than what it became
    old = bits_of(rng, 20_000, np.uint16)
    other = rng.integers(0, 1 << 12, 20_000, np.uint16) if wild else old + np.uint16(3)
    new = np.where(rng.random(20_000) < share, other, old)
    chunk = encode(old, new)
    assert chunk.kind == kind and np.array_equal(applied(chunk, old), new)


def test_a_step_of_one_unit_in_the_last_place_is_small() -> None:
    rng = np.random.default_rng(0)
    old = bits_of(rng, 200_000, np.uint16)
    step = np.where(rng.random(len(old)) < 0.5, 1, 65535).astype(np.uint16)
    new = np.where(rng.random(len(old)) < 0.01, old + step, old)
    # the entropy of where (0.0808 bits an element) and of the sign (0.01) against 16 bits
    assert len(encode(old, new).blob) < 2 * old.nbytes * (0.0808 + 0.01) / 16


def test_distances_of_every_width() -> None:
    for number, at in ((300, [0, 255]), (70_000, [5, 69_999]), (200_000, [199_999])):
        old = np.zeros(number, np.uint16)
        new = old.copy()
        new[at] = 7
        chunk = encode(old, new)
        assert chunk.kind == "sparse" and np.array_equal(applied(chunk, old), new)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_changed": 0},
        {"num_changed": -1},
        {"num_changed": 1001},
        {"num_changed": 7},
        {"gap_bytes": 3},
        {"gap_bytes": 8},
        {"blob": b""},
        {"blob": b"no zstd"},
        {"kind": "dense"},
        {"kind": "full"},
    ],
)
def test_a_chunk_that_is_none_is_refused(changes: dict[str, object]) -> None:
    old = np.zeros(1000, np.uint16)
    new = old.copy()
    new[[1, 5, 990]] = 9
    chunk = encode(old, new)
    with pytest.raises(WeightSyncError):
        applied(dataclasses.replace(chunk, **changes), old)  # type: ignore[arg-type]


def test_a_change_beyond_the_end_is_refused() -> None:
    old = np.zeros(1000, np.uint16)
    new = old.copy()
    new[999] = 9
    with pytest.raises(WeightSyncError, match="beyond the last of 500"):
        applied(encode(old, new), old[:500])
