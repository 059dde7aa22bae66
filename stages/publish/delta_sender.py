"""The learner's side of pushes by delta, in the process of its rank 0: keeps the bits of the last
push in host memory, and writes down what has changed since.

Ranks other than 0 take part by iterating their own weights, as in `BroadcastSender.prepare`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.errors import StaleWeightsError, WeightSyncError
from pipeline.core.types import StagedDelta
from stages.publish.delta_codec import CHUNK, WIDTHS, Bits, Chunk, encode
from stages.publish.delta_file import DTYPES, DeltaWriter, TensorBits, checksum, fingerprint

if TYPE_CHECKING:
    import torch

MAX_THREADS = 8


class DeltaSender:
    """Every failure is a WeightSyncError and leaves it usable: the next push is then one in full.

    It holds as much host memory as the weights have bytes. `export_all` may be called on another
    thread than the one that trains."""

    def __init__(self, weights: Callable[[], Iterator[tuple[str, torch.Tensor]]]) -> None:
        """`weights()`: as BroadcastSender's."""
        self._weights = weights
        self._bits: dict[str, Bits] = {}
        self._tensors: dict[str, TensorBits] = {}
        self._state: str | None = None  # the fingerprint of what is kept, while that is all there
        self._threads = ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0))))

    def export_delta(self, path: Path) -> StagedDelta:
        """Writes what has changed since the last call, or all where there was none; from now on the
        weights as they are now are kept."""
        base, self._state = self._state, None
        before = len(self._bits) if base is not None else None
        if base is None:
            self._bits, self._tensors = {}, {}
        weights = self._weights()
        try:
            with path.open("wb") as out:
                writer, number = DeltaWriter(out), 0
                for number, (name, tensor) in enumerate(weights, 1):  # noqa: B007
                    writer.add(*self._take(name, tensor))
                if number != len(self._bits) or number != (before or number):
                    raise WeightSyncError(
                        f"{number} tensors under {len(self._bits)} names, of {before} before"
                    )
                reached = fingerprint(self._tensors.values())
                size = writer.finish(base, reached)
        except (OSError, RuntimeError, MemoryError, WeightSyncError) as error:
            for _ in weights:  # the other ranks are in there too
                pass
            raise WeightSyncError(
                f"the changes of the weights could not be written to {path}:"
                f" {type(error).__name__}: {error}"
            ) from error
        self._state = reached
        full = sum(bits.nbytes for bits in self._bits.values())
        return StagedDelta(base=base, reached=reached, num_bytes=size, full_bytes=full)

    def export_all(self, path: Path, reached: str) -> int:
        """Writes the weights of the last `export_delta` in full, which must be those that it called
        `reached`; returns the file's size. No collective."""
        if reached != self._state:
            raise StaleWeightsError("the learner no longer has the weights of the last push")
        try:
            with path.open("wb") as out:
                writer = DeltaWriter(out)
                for name, bits in self._bits.items():
                    writer.add(self._tensors[name], self._encoded(None, bits))
                return writer.finish(None, reached)
        except OSError as error:
            raise WeightSyncError(f"the weights could not be written to {path}: {error}") from error

    def _take(self, name: str, tensor: torch.Tensor) -> tuple[TensorBits, list[Chunk]]:
        """Keeps the tensor's bits in place of the old ones; returns what they are, and the way
        there."""
        dtype, shape, new = _bits_of(name, tensor)
        old = self._bits.get(name)
        if old is not None and (old.dtype, len(old)) != (new.dtype, len(new)):
            raise WeightSyncError(f"{name} is {dtype} {list(shape)}, and was not before")
        chunks = self._encoded(old, new)
        if old is not None:
            np.copyto(old, new)
        else:
            self._bits[name] = new.copy() if tensor.device.type == "cpu" else new
        unchanged = old is not None and all(chunk.kind == "same" for chunk in chunks)
        known = self._tensors[name].checksum if unchanged else checksum(new)
        bits = TensorBits(name=name, dtype=dtype, shape=shape, checksum=known)
        self._tensors[name] = bits
        return bits, chunks

    def _encoded(self, old: Bits | None, new: Bits) -> list[Chunk]:
        starts = range(0, len(new), CHUNK)
        pieces = [(None if old is None else old[i : i + CHUNK], new[i : i + CHUNK]) for i in starts]
        return list(self._threads.map(lambda piece: encode(*piece), pieces))


def _bits_of(name: str, tensor: torch.Tensor) -> tuple[str, tuple[int, ...], Bits]:
    """(type, shape, its bits in host memory [n]); they may be the tensor's own memory."""
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise WeightSyncError(
            f"{name} is {dtype}, which --weight-transport delta does not know; others do"
        )
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    return dtype, tuple(tensor.shape), flat.view(WIDTHS[DTYPES[dtype][1]])
