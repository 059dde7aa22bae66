"""The file in which one push travels: for every tensor the chunks that bring it from its last bits
to its new ones, and checksums of everything.

    MAGIC | blobs, one after the other | footer (JSON) | xxh3-128 of the footer | its length | MAGIC

The footer says of each tensor its name, type, shape, chunks, the checksum of its blobs and the one
of its bits once the chunks are applied. Blobs follow each other without gaps, so that every byte of
the file is under one checksum or another. A checksum is xxh3-128 (https://xxhash.com): against
accidents, not against forgery. A file without a base has every tensor in full."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from pipeline.core.errors import WeightSyncError
from stages.publish.delta_codec import CHUNK, KINDS, Chunk

MAGIC = b"SLPDELT1"
TAIL = 16 + 8 + len(MAGIC)  # bytes after the footer

# torch's name -> (safetensors' name, bytes)
DTYPES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorBits:
    """One tensor of a state of the weights, and what its bits are."""

    name: str
    dtype: str  # as in torch.<dtype>
    shape: tuple[int, ...]
    checksum: str  # of its bits, contiguous

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of a file."""

    tensor: TensorBits
    chunks: tuple[Chunk, ...]  # without their blobs
    sizes: tuple[int, ...]  # of the blobs, bytes
    start: int  # of the first blob in the file
    blobs: str  # checksum of all of them


def checksum(data: Any) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def fingerprint(tensors: Iterable[TensorBits]) -> str:
    """Of a whole state of the weights: the same bits under the same names have the same one."""
    told = [[t.name, t.dtype, list(t.shape), t.checksum] for t in tensors]
    return checksum(json.dumps(sorted(told)).encode())


class DeltaWriter:
    """Writes a file tensor by tensor."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._tensors = out, list[Any]()
        self.num_bytes = out.write(MAGIC)

    def add(self, tensor: TensorBits, chunks: Sequence[Chunk]) -> None:
        blobs = xxhash.xxh3_128()
        for chunk in chunks:
            blobs.update(chunk.blob)
            self.num_bytes += self._out.write(chunk.blob)
        told = [[c.kind, c.num_changed, c.gap_bytes, len(c.blob)] for c in chunks]
        self._tensors.append(
            {
                "name": tensor.name,
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "checksum": tensor.checksum,
                "chunks": told,
                "blobs": blobs.hexdigest(),
            }
        )

    def finish(self, base: str | None, reached: str) -> int:
        """`base`: the fingerprint of the state that the file changes; `reached`: of the one that
        comes out. Returns the file's size."""
        footer = json.dumps({"base": base, "reached": reached, "tensors": self._tensors}).encode()
        tail = bytes.fromhex(checksum(footer)) + len(footer).to_bytes(8, "little") + MAGIC
        self.num_bytes += self._out.write(footer) + self._out.write(tail)
        return self.num_bytes


class DeltaFile:
    """A file that has been read and found whole: names, shapes and sizes fit together, and every
    byte is as it was written."""

    def __init__(self, path: Path) -> None:
        """Raises WeightSyncError."""
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise WeightSyncError(
                f"{path} cannot be read: {error}. Learner and engines must share the folder in"
                " which pushes lie (--runs-dir)"
            ) from error
        try:
            self.base, self.reached, self.entries = _parse(self._data)
            self._check_blobs()
        except (WeightSyncError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise WeightSyncError(f"{path} is damaged: {error}") from error

    def chunks(self, entry: Entry) -> list[Chunk]:
        """With their blobs."""
        out, at = [], entry.start
        for chunk, size in zip(entry.chunks, entry.sizes, strict=True):
            out.append(
                Chunk(
                    kind=chunk.kind,
                    num_changed=chunk.num_changed,
                    gap_bytes=chunk.gap_bytes,
                    blob=self._data[at : at + size],
                )
            )
            at += size
        return out

    def close(self) -> None:
        self._data.close()

    def _check_blobs(self) -> None:
        for entry in self.entries:
            end = entry.start + sum(entry.sizes)
            with memoryview(self._data) as view, view[entry.start : end] as blobs:
                found = checksum(blobs)
            if found != entry.blobs:
                raise WeightSyncError(f"the changes of {entry.tensor.name} are not as written")


def _parse(data: mmap.mmap) -> tuple[str | None, str, list[Entry]]:
    """(base, reached, entries) of a footer that is as it was written and makes sense."""
    magic = len(MAGIC)
    if len(data) < magic + TAIL or data[:magic] != MAGIC or data[-magic:] != MAGIC:
        raise WeightSyncError("it does not begin and end as such a file does")
    size = int.from_bytes(data[-magic - 8 : -magic], "little")
    end = len(data) - TAIL
    if size > end - magic:
        raise WeightSyncError("its footer is longer than the file")
    footer = data[end - size : end]
    if checksum(footer) != data[end : end + 16].hex():
        raise WeightSyncError("its footer is not as written")
    told, at, entries = json.loads(footer), magic, []
    for row in told["tensors"]:
        entry = _entry(row, at)
        entries.append(entry)
        at += sum(entry.sizes)
    if at != end - size:
        raise WeightSyncError("it has other bytes than its footer says")
    if len({entry.tensor.name for entry in entries}) != len(entries):
        raise WeightSyncError("a name comes twice")
    base = told["base"]
    if fingerprint(entry.tensor for entry in entries) != told["reached"]:
        raise WeightSyncError("its tensors are not those of the state that it names")
    return None if base is None else str(base), str(told["reached"]), entries


def _entry(row: Mapping[str, Any], start: int) -> Entry:
    """Raises WeightSyncError, or what Python raises of values of other types."""
    tensor = TensorBits(
        name=str(row["name"]),
        dtype=str(row["dtype"]),
        shape=tuple(int(n) for n in row["shape"]),
        checksum=str(row["checksum"]),
    )
    if not tensor.name or tensor.name == "__metadata__":  # safetensors' own
        raise WeightSyncError(f"a tensor is called {tensor.name!r}")
    if tensor.dtype not in DTYPES or any(n < 0 for n in tensor.shape):
        raise WeightSyncError(f"{tensor.name} is {tensor.dtype} of shape {list(tensor.shape)}")
    if len(row["chunks"]) != num_chunks(tensor.numel):
        raise WeightSyncError(f"{tensor.name} has {len(row['chunks'])} chunks")
    chunks, sizes = [], []
    for kind, num_changed, gap_bytes, size in row["chunks"]:
        if kind not in KINDS or int(size) < 0:
            raise WeightSyncError(f"a chunk of {tensor.name} is {kind!r} of {size} bytes")
        chunks.append(Chunk(kind=kind, num_changed=int(num_changed), gap_bytes=int(gap_bytes)))
        sizes.append(int(size))
    return Entry(
        tensor=tensor,
        chunks=tuple(chunks),
        sizes=tuple(sizes),
        start=start,
        blobs=str(row["blobs"]),
    )


def num_chunks(numel: int) -> int:
    return -(-numel // CHUNK)
