"""Hugging Face folders: what their safetensors hold, reading them tensor by tensor, and writing a
folder as its weights arrive."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.core.errors import CheckpointError
from stages.learn.hf_shards import Shards, name_shards, write_shards

MAX_SHARD_BYTES = 5 << 30
_WEIGHTS = (
    ".safetensors",
    ".bin",
    ".gguf",
    ".pt",
    ".pth",
    ".h5",
    ".msgpack",
    ".onnx",
    ".index.json",
)
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES["F8_E4M3"] = torch.bfloat16  # what `HfFolder` makes of it
_SCALE = "_scale_inv"  # the tensor of a float8 one's scales


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHeader:
    """One tensor as a file's header describes it."""

    file: str
    shape: tuple[int, ...]
    dtype: str  # safetensors' name for it, e.g. BF16
    num_bytes: int


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of the folder's safetensors by name; reads headers only.

    Raises CheckpointError for broken or absent files.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        where = _json(index).get("weight_map", {})
        found = {
            name: _header(folder / file) for name, file in {f: f for f in where.values()}.items()
        }
        if lost := [n for n, file in where.items() if n not in found[file]]:
            raise CheckpointError(
                f"{index} lists {listed(lost)}, which the files do not hold: complete the download"
            )
        return {name: found[file][name] for name, file in where.items()}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder}: no safetensors in it; expected a Hugging Face folder (convert others with"
            " save_pretrained)"
        )
    return {name: stored for file in files for name, stored in _header(file).items()}


def _header(file: Path) -> dict[str, TensorHeader]:
    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            length = struct.unpack("<Q", f.read(8))[0]
            if length > size:
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(f.read(length))
        header.pop("__metadata__", None)
        if (
            header
            and 8 + length + max(entry["data_offsets"][1] for entry in header.values()) > size
        ):
            raise ValueError(f"cut off: {size} bytes are less than its header says")
    except (OSError, ValueError, struct.error, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({error}): complete the download"
        ) from error
    return {
        name: TensorHeader(
            file=file.name,
            shape=tuple(entry["shape"]),
            dtype=entry["dtype"],
            num_bytes=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


def main_dtype(headers: Mapping[str, TensorHeader]) -> torch.dtype:
    """The floating-point type of most bytes (a router's bias may be wider than the rest).

    Raises CheckpointError where there is none."""
    count: Counter[str] = Counter()
    for stored in headers.values():
        count[stored.dtype] += stored.num_bytes
    for name, _ in count.most_common(1):
        if name in _DTYPES:
            return _DTYPES[name]
    raise CheckpointError(
        f"weights of type {', '.join(count) or 'none'}: expected {', '.join(_DTYPES)}; dequantise"
        " the checkpoint first"
    )


class HfFolder:
    """The tensors of a folder by name; each is read when it is asked for, float8 in blocks as
    bfloat16. Raises CheckpointError for broken or absent files."""

    def __init__(self, path: Path) -> None:
        self.path, self.headers = path, read_headers(path)
        self._open: dict[str, Any] = {}

    @property
    def names(self) -> set[str]:
        """The names of all tensors but those that are only scales of others."""
        return {
            n
            for n in self.headers
            if not (n.endswith(_SCALE) and n.removesuffix(_SCALE) in self.headers)
        }

    def __getitem__(self, name: str) -> Tensor:
        file = self.headers[name].file
        try:
            if file not in self._open:
                self._open[file] = safe_open(self.path / file, framework="pt", device="cpu")
            tensor: Tensor = self._open[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path / file}: {name} cannot be read: {error}") from error
        if tensor.dtype is torch.float8_e4m3fn and name + _SCALE in self.headers:
            return dequantised(tensor, self[name + _SCALE])
        return tensor


def dequantised(weight: Tensor, scale: Tensor, block: int = 128) -> Tensor:
    """float8 [m, n] and a scale for each block [ceil(m/128), ceil(n/128)] as bfloat16: how
    DeepSeek-V3 and Kimi K2 are published.

    Source: deepseek-ai/DeepSeek-V3, inference/fp8_cast_bf16.py.
    """
    rows, columns = weight.shape
    spread = scale.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
    return (weight.float() * spread).to(torch.bfloat16)


def listed(names: Iterable[str], limit: int = 5) -> str:
    """`a, b, c and 4 more`."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def write_hf_folder(
    weights: Iterable[tuple[str, Tensor]],
    source: Path,
    path: Path,
    *,
    max_shard_bytes: int | None = None,
) -> int:
    """Write `weights` as safetensors into the folder `path`, with everything but weights copied
    from the folder `source`.

    Holds one shard of at most `max_shard_bytes` (default: MAX_SHARD_BYTES; or one larger tensor) in
    memory. What is written is on the disk, and `path` appears whole or not at all; one that was
    there is replaced. The tensors must keep their values until this returns. Returns the bytes of
    the weights."""
    begin_hf_folder(source, path)
    try:
        shards = write_shards(weights, part_of(path), max_shard_bytes or MAX_SHARD_BYTES)
        return finish_hf_folder([shards], source, path)
    except BaseException:
        shutil.rmtree(part_of(path), ignore_errors=True)
        raise


def part_of(path: Path) -> Path:
    """Where the folder `path` is while it is in the making."""
    return path.with_name(path.name + ".part")


def begin_hf_folder(source: Path, path: Path) -> None:
    """Makes an empty `part_of(path)`, into which any number of processes may write their shards;
    then `finish_hf_folder` makes `path` of it."""
    if not (source / "config.json").is_file():
        raise CheckpointError(f"{source}: not a Hugging Face model folder (no config.json)")
    shutil.rmtree(part_of(path), ignore_errors=True)
    part_of(path).mkdir(parents=True)


def finish_hf_folder(shards: Sequence[Shards], source: Path, path: Path) -> int:
    """Makes `path` of the shards and of everything but weights of `source`; returns the bytes of
    the weights. It is on the disk then."""
    part, total = part_of(path), Counter[str]()
    for each in shards:
        total.update(each.num_bytes)
    name_shards(shards, part, total.total())
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS):
            shutil.copy2(file, part / file.name)
    config = _json(source / "config.json")
    # what is written is not quantised, whatever the source was
    for stale in ("torch_dtype", "quantization_config"):
        config.pop(stale, None)
    # else a reader would cast to what the original was stored in
    config["dtype"] = total.most_common(1)[0][0]
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    make_durable(part)
    shutil.rmtree(path, ignore_errors=True)
    part.rename(path)
    make_durable(path.parent, files=False)
    return total.total()


def make_durable(folder: Path, *, files: bool = True) -> None:
    """Returns when `folder`, and with `files` everything in it, is on the disk and not only in the
    page cache."""
    for path in [folder, *(folder.rglob("*") if files else ())]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _json(path: Path) -> dict[str, Any]:
    try:
        out: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    return out
