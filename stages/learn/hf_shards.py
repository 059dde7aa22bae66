"""Files of safetensors that several processes write into one folder, each its own tensors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """What one process has written, under names that say nothing yet: which there are is known when
    all have written."""

    files: tuple[tuple[str, tuple[str, ...]], ...]  # (file, its tensors)
    num_bytes: Mapping[str, int]  # by type, as in torch.<dtype>


def write_shards(
    weights: Iterable[tuple[str, Tensor]], folder: Path, max_shard_bytes: int, *, writer: int = 0
) -> Shards:
    """Holds one shard of at most `max_shard_bytes` (or one larger tensor) in memory. The tensors
    must keep their values until this returns. `writer`: the number of this process."""
    shard: dict[str, Tensor] = {}
    files: list[tuple[str, tuple[str, ...]]] = []
    size, count = 0, Counter[str]()

    def flush() -> None:
        nonlocal size
        file = f"{writer}-{len(files)}.shard"
        save_file(shard, folder / file, metadata={"format": "pt"})
        files.append((file, tuple(shard)))
        shard.clear()
        size = 0

    for name, tensor in weights:
        if shard and size + tensor.nbytes > max_shard_bytes:
            flush()
        shard[name] = _own(tensor)
        size += tensor.nbytes
        count[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    if shard:
        flush()
    return Shards(files=tuple(files), num_bytes=dict(count))


def name_shards(shards: Sequence[Shards], folder: Path, total_bytes: int) -> None:
    """Gives all files the names that readers look for, and where there are several, an index."""
    files = [file for each in shards for file in each.files]
    if len(files) == 1:
        (folder / files[0][0]).rename(folder / "model.safetensors")
        return
    where = {}
    for i, (written, names) in enumerate(files, 1):
        file = f"model-{i:05d}-of-{len(files):05d}.safetensors"
        (folder / written).rename(folder / file)
        where.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=2), encoding="utf-8"
    )


def _own(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous, and alone in its memory: safetensors refuses halves of a
    fused weight that share theirs."""
    tensor = tensor.detach()
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    if tensor.device.type == "cpu" and alone and tensor.is_contiguous():
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
