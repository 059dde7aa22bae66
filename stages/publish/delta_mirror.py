"""An engine's node's own copy of the weights: a folder of safetensors that pushes are applied to,
and that the engines of the node load from.

It is changed in place, under a lock, before any engine pauses. Its manifest says whose bits it
holds, by fingerprint, and is gone while they are changed: a copy without one, or of another state
than a push begins with, takes only a push in full. So does one in which a changed tensor does not
come out with the checksum that the learner has for it.

Whoever has brought a copy up to date holds it for as long as its process lives. One that nobody
holds is left over: the next one made in its folder removes it, and so does the next engine that
starts, where it lies in the temporary folder (stages/engine/scratch.py knows it by its name)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.core.errors import WeightSyncError
from stages.publish.delta_codec import CHUNK, WIDTHS, Bits, decode
from stages.publish.delta_file import DTYPES, DeltaFile, Entry, TensorBits, checksum, fingerprint

PREFIX = "slipstream-engine-weights-"
MANIFEST, OWNER, TURN = "manifest.json", "owner.lock", "turn.lock"
SHARD_BYTES = 1 << 30  # of a file, so that an engine reads several at once
MAX_THREADS = 8

_holding = threading.Lock()
_held: dict[Path, int] = {}  # copies that this process holds -> an open, locked file

Brought = Literal["there", "delta", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where a tensor's bits lie."""

    tensor: TensorBits
    file: str
    start: int  # in the file, bytes

    @property
    def num_bytes(self) -> int:
        return self.tensor.numel * self.tensor.itemsize


def bring(folder: Path, push: Path, reached: str, check: bool = False) -> Brought:
    """Brings the copy in `folder` to the state `reached` by the file `push`, unless it is there;
    says what it took. `check`: looks at every bit that the
    push did not bring.

    Raises WeightSyncError; the copy is then as it was, or without a manifest."""
    try:
        _hold(folder)
        with _turn(folder):
            placed = _read_manifest(folder)
            there = fingerprint(p.tensor for p in placed) if placed else None
            if check:
                _check_all(folder, placed)
            if there == reached:
                return "there"
            return _apply(folder, placed, there, push, reached)
    except OSError as error:
        raise WeightSyncError(
            f"the node's copy of the weights, {folder}, could not be written: {error}"
            " (--update-weight-local-checkpoint-dir says where it lies)"
        ) from error


def drop(folder: Path) -> None:
    """Removes the copy. One that is not there is no error."""
    with _holding:
        shutil.rmtree(folder, ignore_errors=True)
        if (fd := _held.pop(folder, None)) is not None:
            os.close(fd)


def _apply(
    folder: Path, placed: Sequence[Placed], there: str | None, push: Path, reached: str
) -> Brought:
    with contextlib.closing(DeltaFile(push)) as file:
        if file.reached != reached:
            raise WeightSyncError(f"{push} brings other weights than those that were announced")
        if file.base is not None and file.base != there:
            held = "nothing" if there is None else "another state of the weights"
            raise WeightSyncError(f"{folder} holds {held}, not what {push.name} changes")
        (folder / MANIFEST).unlink(missing_ok=True)
        if file.base is None:  # even where the files are there: they may be damaged, or too short
            placed = _lay_out(folder, [entry.tensor for entry in file.entries])
        where = {p.tensor.name: p for p in placed}
        if where.keys() != {entry.tensor.name for entry in file.entries}:
            raise WeightSyncError(f"{push.name} has other tensors than {folder}")
        with _mapped(folder, placed) as maps, ThreadPoolExecutor(_threads()) as pool:
            work = [
                pool.submit(_change, file, entry, maps, where[entry.tensor.name])
                for entry in file.entries
            ]
            for each in work:
                each.result()
        new = {e.tensor.name: e.tensor for e in file.entries}
        _write_manifest(folder, [(new[p.tensor.name], p) for p in placed])
        return "full" if file.base is None else "delta"


def _change(file: DeltaFile, entry: Entry, maps: dict[str, mmap.mmap], placed: Placed) -> None:
    tensor, old = entry.tensor, placed.tensor
    if (tensor.dtype, tensor.shape) != (old.dtype, old.shape):
        raise WeightSyncError(
            f"{tensor.name} is {tensor.dtype} {list(tensor.shape)} in the push and {old.dtype}"
            f" {list(old.shape)} on the node"
        )
    bits = _bits(maps[placed.file], placed)
    for i, chunk in enumerate(file.chunks(entry)):
        decode(chunk, bits[i * CHUNK : (i + 1) * CHUNK])
    if checksum(bits) != tensor.checksum:
        raise WeightSyncError(f"{tensor.name} does not come out as the learner has it")


def _check_all(folder: Path, placed: Sequence[Placed]) -> None:
    with _mapped(folder, placed) as maps:
        for each in placed:
            if checksum(_bits(maps[each.file], each)) != each.tensor.checksum:
                (folder / MANIFEST).unlink(missing_ok=True)
                raise WeightSyncError(f"{each.tensor.name} has changed where it lies, in {folder}")


def _bits(data: mmap.mmap, placed: Placed) -> Bits:
    dtype = WIDTHS[placed.tensor.itemsize]
    return np.frombuffer(data, dtype, count=placed.tensor.numel, offset=placed.start)


# ---- the folder


def _lay_out(folder: Path, tensors: Sequence[TensorBits]) -> list[Placed]:
    """Makes files of zeros, as safetensors (https://github.com/huggingface/safetensors#format).
    Their room is taken at once: a mapped file that finds the disk full later ends the process."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
    # wide elements first, so that all of them lie at multiples of their width
    ordered = sorted(tensors, key=lambda t: -t.itemsize)
    shards: list[list[TensorBits]] = [[]]
    room = SHARD_BYTES
    for tensor in ordered:
        size = tensor.numel * tensor.itemsize
        if shards[-1] and size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(tensor)
        room -= size
    return [p for i, shard in enumerate(shards) for p in _make_file(folder, i, shard)]


def _make_file(folder: Path, number: int, tensors: Sequence[TensorBits]) -> Iterator[Placed]:
    header: dict[str, Any] = {}
    at, name = 0, f"weights-{number:05d}.safetensors"
    for tensor in tensors:
        size = tensor.numel * tensor.itemsize
        header[tensor.name] = {
            "dtype": DTYPES[tensor.dtype][0],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with (folder / name).open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.flush()
        os.posix_fallocate(out.fileno(), 0, start + at)
    for tensor in tensors:
        offset = start + header[tensor.name]["data_offsets"][0]
        yield Placed(tensor=tensor, file=name, start=offset)


@contextlib.contextmanager
def _mapped(folder: Path, placed: Sequence[Placed]) -> Iterator[dict[str, mmap.mmap]]:
    maps = {}
    for name in sorted({p.file for p in placed}):
        with (folder / name).open("r+b") as file:
            maps[name] = mmap.mmap(file.fileno(), 0)
    yield maps  # closed when the last array over them is gone


def _read_manifest(folder: Path) -> list[Placed]:
    """What the copy holds; nothing where that is not known."""
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = [
            Placed(
                tensor=TensorBits(**row["tensor"] | {"shape": tuple(row["tensor"]["shape"])}),
                file=row["file"],
                start=row["start"],
            )
            for row in told
        ]
        sizes = {p.file: (folder / p.file).stat().st_size for p in found}
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return found if all(p.start + p.num_bytes <= sizes[p.file] for p in found) else []


def _write_manifest(folder: Path, placed: Sequence[tuple[TensorBits, Placed]]) -> None:
    told = [{"tensor": asdict(t), "file": p.file, "start": p.start} for t, p in placed]
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(json.dumps(told), encoding="utf-8")
    partial.replace(folder / MANIFEST)


# ---- whose it is


def _hold(folder: Path) -> None:
    """Makes the folder unless it is there, and keeps others from removing it."""
    with _holding:
        while folder not in _held or not (folder / OWNER).exists():
            if (old := _held.pop(folder, None)) is not None:
                os.close(old)  # it was removed under our hands
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder.parent, keep=folder)
            try:
                fd = os.open(folder / OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # removed between the two lines
                continue
            fcntl.flock(fd, fcntl.LOCK_SH)
            _held[folder] = fd


def _sweep(parent: Path, keep: Path) -> None:
    for path in parent.glob(PREFIX + "*"):
        if path == keep or not (path / OWNER).exists():
            continue  # ours, or one that is just being made
        with (path / OWNER).open("r+b") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One at a time, of all processes of the node."""
    with (folder / TURN).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _threads() -> int:
    return min(MAX_THREADS, len(os.sched_getaffinity(0)))
