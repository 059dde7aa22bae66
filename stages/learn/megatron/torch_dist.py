"""torch_dist checkpoints without a process group: reading any part of a tensor, and writing tensors
as they come.

The format is torch.distributed.checkpoint's: tensors, each as torch.save writes it, one behind the
other in `*.distcp` files; where each piece lies is in the pickle `.metadata`, of which only the
classes that belong there are built. `metadata.json` and `common.pt` are Megatron's."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from pipeline.core.errors import CheckpointError

FILE = "__0_0.distcp"
_COMMON = "common_state/shard_0_1"  # a ShardedObject's unique key
# What a .metadata pickle may name: torch's and Megatron's descriptions of tensors and of who wrote
# which, nothing that acts.
_DESCRIPTIONS = (
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
)
_ALLOWED: dict[str, tuple[str, ...]] = {
    "torch.distributed.checkpoint.metadata": _DESCRIPTIONS,
    "torch.distributed.checkpoint.planner": (
        "BytesIOWriteData",
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.distributed._shard.sharded_tensor.metadata": ("MEM_FORMAT_ENCODING", "TensorProperties"),
    "megatron.core.dist_checkpointing.strategies.torch": ("MCoreMetadata", "MCoreSavePlan"),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("PosixPath", "PurePosixPath"),
    "collections": ("OrderedDict",),
    "builtins": ("dict", "list", "set"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"it names {module}.{name}, which no description of tensors needs"
        )


def read_metadata(folder: Path) -> Metadata:
    """What the checkpoint in `folder` holds and where.

    Raises CheckpointError when it is not one, or its pickle names anything else.
    """
    try:
        kind = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["sharded_backend"]
        if kind != "torch_dist":
            raise CheckpointError(
                f"{folder}: sharded_backend {kind!r}: this Megatron-core reads torch_dist only;"
                " convert it with the release that wrote it"
            )
        with (folder / ".metadata").open("rb") as f:
            metadata = _Unpickler(f).load()
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        AttributeError,
        ImportError,
        IndexError,
        pickle.UnpicklingError,
    ) as error:
        raise CheckpointError(
            f"{folder}: no whole torch_dist checkpoint (metadata.json, .metadata): {error}"
        ) from error
    if not isinstance(metadata, Metadata):
        raise CheckpointError(
            f"{folder}/.metadata: expected torch's Metadata, got {type(metadata).__name__}"
        )
    return metadata


def read_common(folder: Path) -> dict[str, Any]:
    """What is no tensor of the model: `common.pt` as Megatron-core up to 0.18 writes it, or the
    object that later releases keep among the tensors.

    Never runs code. Raises CheckpointError when it is not there or holds other classes.
    """
    own_file = folder / "common.pt"
    if not own_file.exists():
        with Reader(folder) as held:
            if _COMMON in held.objects:
                common: dict[str, Any] = held.read_object(_COMMON)[0]
                return common
    try:
        common = torch.load(own_file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(f"{own_file} cannot be read: {error}") from error
    return common


class Reader:
    """Reads tensors of a checkpoint by key: any box of any of them, whatever the layout it was
    saved with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        metadata = read_metadata(folder)
        entries = metadata.state_dict_metadata
        self.tensors: dict[str, TensorStorageMetadata] = {
            k: m for k, m in entries.items() if isinstance(m, TensorStorageMetadata)
        }
        self.objects = {k for k, m in entries.items() if isinstance(m, BytesStorageMetadata)}
        self._where: dict[tuple[str, tuple[int, ...]], _StorageInfo] = {}
        for index, info in metadata.storage_data.items():
            self._where[index.fqn, tuple(index.offset or ())] = info
        self._files: dict[str, BinaryIO] = {}

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        return self.tensors[key].properties.dtype

    def read(self, key: str, offset: Sequence[int], size: Sequence[int]) -> Tensor:
        """The box of `size` at `offset`.

        Raises CheckpointError when the file is cut off, or the pieces do not cover the box."""
        out: Tensor | None = None
        left = math.prod(size)
        for chunk in self.tensors[key].chunks:
            low = [max(o, c) for o, c in zip(offset, chunk.offsets, strict=True)]
            high = [
                min(o + s, c + n)
                for o, s, c, n in zip(offset, size, chunk.offsets, chunk.sizes, strict=True)
            ]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            piece = self._piece(key, chunk)
            taken = piece[
                tuple(slice(a - c, b - c) for a, b, c in zip(low, high, chunk.offsets, strict=True))
            ]
            if tuple(taken.shape) == tuple(size):
                return taken
            out = torch.empty(tuple(size), dtype=self.dtype(key)) if out is None else out
            out[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offset, strict=True))] = (
                taken
            )
            left -= taken.numel()
        if out is None or left > 0:
            raise CheckpointError(
                f"{self.folder}: {key}: its pieces do not cover {list(size)} at {list(offset)}: not"
                " a whole checkpoint"
            )
        return out

    def read_object(self, key: str) -> Any:
        """One of `objects`. Raises CheckpointError when it cannot be read, or holds a class."""
        return self._load(key, ())

    def _piece(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        tensor = self._load(key, tuple(chunk.offsets))
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != tuple(chunk.sizes):
            raise CheckpointError(
                f"{self.folder}: {key}: expected a tensor of {list(chunk.sizes)}, found"
                f" {getattr(tensor, 'shape', type(tensor))}"
            )
        return tensor

    def _load(self, key: str, offset: tuple[int, ...]) -> Any:
        try:
            info = self._where[key, offset]
            if info.relative_path not in self._files:
                self._files[info.relative_path] = (
                    self.folder / Path(info.relative_path).name
                ).open("rb")
            file = self._files[info.relative_path]
            file.seek(info.offset)
            data = file.read(info.length)
            if len(data) != info.length:
                raise OSError(f"{info.relative_path} is cut off")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{self.folder}: {key} cannot be read: {error}") from error


class Writer:
    """Writes a checkpoint of one file, tensor by tensor; `finish` makes it complete."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self._file = (folder / FILE).open("wb")
        self._entries: dict[str, Any] = {}
        self._where: dict[MetadataIndex, _StorageInfo] = {}
        self.num_bytes = 0

    def add(self, key: str, tensor: Tensor, *, offset: Sequence[int], shape: Sequence[int]) -> None:
        """`tensor` (as many dimensions as `shape`) is the piece at `offset` of the tensor `key` of
        `shape`."""
        if key not in self._entries:
            self._entries[key] = TensorStorageMetadata(
                TensorProperties(dtype=tensor.dtype), torch.Size(shape), []
            )
        chunk = ChunkStorageMetadata(torch.Size(offset), torch.Size(tensor.shape))
        chunks = self._entries[key].chunks
        self._put(MetadataIndex(key, chunk.offsets, len(chunks)), _compact(tensor))
        chunks.append(chunk)
        self.num_bytes += tensor.numel() * tensor.element_size()

    def add_object(self, key: str, value: Any) -> None:
        """One of Megatron's ShardedObjects, by its unique key."""
        self._entries[key] = BytesStorageMetadata()
        self._put(MetadataIndex(key), [value])

    def _put(self, index: MetadataIndex, value: Any) -> None:
        start = self._file.tell()
        torch.save(value, self._file)
        self._where[index] = _StorageInfo(FILE, start, self._file.tell() - start)

    def finish(self, common: Mapping[str, Any]) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        metadata = Metadata(
            state_dict_metadata=self._entries, planner_data=None, storage_data=self._where
        )
        (self._folder / ".metadata").write_bytes(pickle.dumps(metadata))
        torch.save(dict(common), self._folder / "common.pt")
        config = {
            "sharded_backend": "torch_dist",
            "sharded_backend_version": 1,
            "common_backend": "torch",
            "common_backend_version": 1,
        }
        (self._folder / "metadata.json").write_text(json.dumps(config), encoding="utf-8")

    def close(self) -> None:
        self._file.close()


def _compact(tensor: Tensor) -> Tensor:
    """Without the rest of the memory that a view shares: torch.save would write all of it."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return (
        tensor.detach()
        if whole and tensor.is_contiguous()
        else tensor.detach().clone(memory_format=torch.contiguous_format)
    )
