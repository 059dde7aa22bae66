"""Hugging Face folders, written whole or not at all: what others read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

MAX_SHARD_BYTES = 5 << 30
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".index.json")


def export_hf(weights: Iterator[tuple[str, Tensor]], source: Path, path: Path, *, write: bool) -> None:
    """Write a Hugging Face folder: `weights` as safetensors, everything but weights copied from the folder `source`.

    All ranks iterate `weights` to the end; only the one with `write` touches the disk. The folder appears whole or not at all.
    """
    if not write:
        for _ in weights:
            pass
        return
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    dtype = _write_shards(weights, part)
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS):
            shutil.copy2(file, part / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")  # else a reader would cast to what the original was stored in
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(path, ignore_errors=True)
    part.rename(path)


def _write_shards(weights: Iterator[tuple[str, Tensor]], folder: Path) -> torch.dtype:
    shards: list[dict[str, Tensor]] = [{}]
    num_bytes, total = 0, 0
    for name, tensor in weights:
        size = tensor.numel() * tensor.element_size()
        if num_bytes + size > MAX_SHARD_BYTES and shards[-1]:
            shards.append({})
            num_bytes = 0
        # A copy: halves of a fused weight share memory, which safetensors refuses.
        shards[-1][name] = tensor.to("cpu", copy=True).contiguous()
        num_bytes, total = num_bytes + size, total + size
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        for file, shard in zip(names, shards, strict=True):
            save_file(shard, folder / file, metadata={"format": "pt"})
        where = {key: file for file, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return next(iter(shards[0].values())).dtype
