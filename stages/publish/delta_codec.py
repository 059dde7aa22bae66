"""How a tensor came from its last bits to its new ones, in few bytes and without loss.

A tensor is seen as unsigned integers of its element's width, in chunks of CHUNK elements. What a
chunk is turned into is the smallest of

- `same`: nothing;
- `sparse`: of every element that changed, how far it is from the one before, and its difference;
- `dense`: the difference of all elements;
- `full`: all elements.

A difference is that of the integers, modulo their width, which brings back every bit pattern (NaN
payloads and signed zeros too), folded so that small ones of either sign are small numbers
("zigzag", https://protobuf.dev/programming-guides/encoding/#signed-ints): a step of a small
learning rate moves a bfloat16 by one unit in the last place or not at all. All integers are laid
out byte plane by byte plane, which gathers the bytes that are nearly always zero, and compressed by
zstd (RFC 8878, through pyarrow)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from pipeline.core.errors import WeightSyncError

Kind = Literal["same", "sparse", "dense", "full"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Bits = np.ndarray[Any, np.dtype[Any]]  # unsigned integers

CHUNK = 1 << 22  # elements: bounds what is held beside the tensors
LEVEL = 1  # of zstd; higher ones gain little on such integers
# Which forms are tried, by the share of elements that changed. Measured on bfloat16 weights: below
# DENSE_AT_LEAST sparse was always the smallest, whatever the changes, and below FULL_AT_LEAST full
# never was; above SPARSE_AT_MOST distances cost more than the zeros between.
SPARSE_AT_MOST, DENSE_AT_LEAST, FULL_AT_LEAST = 0.75, 0.25, 0.5
WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}  # bytes -> integers


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One chunk's way; `blob` is its bytes."""

    kind: Kind
    num_changed: int = 0  # sparse only
    gap_bytes: int = 0  # sparse only: width of a distance
    blob: bytes = b""


def encode(old: Bits | None, new: Bits) -> Chunk:
    """The way from `old` to `new` ([n], of the same type); without `old`, `full`."""
    if old is None:
        return _full(new)
    changed = old != new
    number = int(np.count_nonzero(changed))
    if number == 0:
        return Chunk(kind="same")
    share, found = number / len(new), []
    if share <= SPARSE_AT_MOST:
        found.append(_sparse(old, new, np.flatnonzero(changed)))
    if share >= DENSE_AT_LEAST:
        found.append(Chunk(kind="dense", blob=_pack(_fold(new - old))))
    if share >= FULL_AT_LEAST:
        found.append(_full(new))
    return min(found, key=lambda chunk: len(chunk.blob))


def decode(chunk: Chunk, bits: Bits) -> None:
    """Turns the old `bits` [n] into the new ones, where they are. Raises WeightSyncError when the
    chunk is none of n elements; then they may be anything."""
    if chunk.kind == "same":
        return
    width = bits.dtype.itemsize
    if chunk.kind == "sparse":
        number, gap_bytes = chunk.num_changed, chunk.gap_bytes
        if not 0 < number <= len(bits) or gap_bytes not in WIDTHS:
            raise WeightSyncError(
                f"{number} changes at distances of {gap_bytes} bytes in {len(bits)} elements"
            )
        raw = _decompress(chunk.blob, number * (gap_bytes + width))
        gaps = _from_planes(raw[: number * gap_bytes], WIDTHS[gap_bytes])
        # distances are at most 2^32 here, so that their sum has room
        where = np.cumsum(gaps.astype(np.int64) + 1) - 1
        if gap_bytes == 8 or where[-1] >= len(bits):
            raise WeightSyncError(f"a change beyond the last of {len(bits)} elements")
        bits[where] += _unfold(_from_planes(raw[number * gap_bytes :], bits.dtype.type))
        return
    values = _from_planes(_decompress(chunk.blob, len(bits) * width), bits.dtype.type)
    if chunk.kind == "dense":
        bits += _unfold(values)
    else:
        bits[:] = values


def _full(new: Bits) -> Chunk:
    return Chunk(kind="full", blob=_pack(new))


def _sparse(old: Bits, new: Bits, where: Bits) -> Chunk:
    gaps = np.diff(where, prepend=-1) - 1
    largest = int(gaps.max())
    gap_bytes = next(b for b in (1, 2, 4) if largest < 1 << 8 * b)
    values = _fold(new[where] - old[where])
    raw = _planes(gaps.astype(WIDTHS[gap_bytes])).tobytes() + _planes(values).tobytes()
    return Chunk(kind="sparse", num_changed=len(where), gap_bytes=gap_bytes, blob=_compress(raw))


def _fold(difference: Bits) -> Bits:
    """0, -1, 1, -2, ... (modulo the width) as 0, 1, 2, 3, ..."""
    bits = 8 * difference.dtype.itemsize
    sign = difference >> (bits - 1)
    return (difference << 1) ^ (np.zeros_like(sign) - sign)


def _unfold(folded: Bits) -> Bits:
    return (folded >> 1) ^ (np.zeros_like(folded) - (folded & 1))


def _planes(values: Bits) -> Bits:
    """[n] of w bytes each as uint8 [w * n]: all first bytes, all second ones, ..."""
    width = values.dtype.itemsize
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, width).T).reshape(-1)


def _from_planes(raw: memoryview, dtype: Any) -> Bits:
    width = np.dtype(dtype).itemsize
    planes = np.frombuffer(raw, np.uint8).reshape(width, -1)
    out = np.empty(planes.shape[1], dtype)
    as_bytes = out.view(np.uint8)
    for i, plane in enumerate(planes):  # transposing both at once takes five times as long
        as_bytes[i::width] = plane
    return out


def _pack(values: Bits) -> bytes:
    return _compress(_planes(values))


def _compress(raw: bytes | Bits) -> bytes:
    return bytes(pa.Codec("zstd", LEVEL).compress(raw, asbytes=True))


def _decompress(blob: bytes, size: int) -> memoryview:
    try:
        raw = memoryview(pa.Codec("zstd").decompress(blob, decompressed_size=size))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise WeightSyncError(f"zstd could not read a chunk: {error}") from error
    if len(raw) != size:
        raise WeightSyncError(f"a chunk has {len(raw)} bytes instead of {size}")
    return raw
