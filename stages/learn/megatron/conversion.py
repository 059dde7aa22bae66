"""Checkpoints from one format to another, weight by weight: one shard and one weight are in memory
at a time, whatever layout they were saved with."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.core.errors import CheckpointError
from pipeline.core.find_checkpoint import TRACKER, Weights
from stages.learn.hf_folder import HfFolder, main_dtype, make_durable, write_hf_folder
from stages.learn.megatron import hf_check, legacy, sharded, torch_dist
from stages.learn.megatron.skeleton import Skeleton, Weight, skeleton

RELEASE = "release"  # what Megatron-LM calls a checkpoint that is no iteration of a training run


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    num_weights: int
    num_bytes: int
    seconds: float


class Source(Protocol):
    """A Megatron checkpoint in one of its formats."""

    def dtype(self) -> torch.dtype: ...
    def compare(self, skeleton: Skeleton) -> sharded.Mismatch: ...
    def read(self, weight: Weight) -> Tensor:
        """The whole weight in Megatron's layout; the vocabulary without its padding."""


def to_hf(
    weights: Weights,
    origin: Path,
    output: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
    trust_pickle: bool = False,
) -> Conversion:
    """Writes a Megatron checkpoint as the Hugging Face folder `output`, with configuration and
    tokenizer of `origin`.

    `dtype` None keeps the stored type. Raises CheckpointError that lists what is missing, surplus
    or of another shape, before anything is written; `output` appears whole or not at all."""
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_source(weights, trust_pickle))
        whole = stack.enter_context(skeleton(origin, dtype or source.dtype()))
        if found := source.compare(whole):
            raise CheckpointError(
                f"{weights.folder} does not fit the model of {origin}: {found}. Is --hf-checkpoint"
                " another model's?"
            )
        num_bytes = write_hf_folder(
            _as_hf(source, whole, dtype), origin, output, max_shard_bytes=max_shard_bytes
        )
        count = len(whole.hf_shapes())
    return Conversion(num_weights=count, num_bytes=num_bytes, seconds=time.perf_counter() - began)


@contextlib.contextmanager
def _source(weights: Weights, trust_pickle: bool) -> Iterator[Source]:
    if weights.format == "torch":
        yield legacy.Legacy(weights.folder, trust_pickle=trust_pickle)
        return
    with torch_dist.Reader(weights.folder) as reader:
        yield TorchDist(reader)


def _as_hf(
    source: Source, whole: Skeleton, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    for weight in whole.weights:
        for name, tensor in whole.bridge.to_hf(weight.agreed, source.read(weight)):
            yield name, tensor if dtype is None else tensor.to(dtype)


class TorchDist:
    """Implements `Source` for torch_dist checkpoints."""

    def __init__(self, reader: torch_dist.Reader) -> None:
        self._reader = reader
        self._entries: dict[str, Any] = {}

    def dtype(self) -> torch.dtype:
        key = max(
            (k for k in self._reader.tensors if k.startswith("decoder.")),
            key=lambda k: torch.Size(self._reader.shape(k)).numel(),
            default=None,
        )
        if key is None:
            raise CheckpointError(
                f"{self._reader.folder}: holds no decoder.* weights; expected a GPT model's"
                " checkpoint"
            )
        return self._reader.dtype(key)

    def compare(self, skeleton: Skeleton) -> sharded.Mismatch:
        entries = sharded.fitted_all(skeleton.model, self._reader)
        self._entries = {weight.own: entries[weight.own] for weight in skeleton.weights}
        return sharded.compare(
            self._entries.values(), self._reader, num_words=skeleton.bridge.vocab_size, whole=True
        )

    def read(self, weight: Weight) -> Tensor:
        entry = self._entries[weight.own]
        parts = [
            self._reader.read(p.key, offset, size).view(p.local_shape)
            for p, offset, size in sharded.boxes(entry)
        ]
        return sharded.merged(entry, parts)


def to_torch_dist(folder: Path, output: Path, *, dtype: torch.dtype | None = None) -> Conversion:
    """Writes a Hugging Face folder as Megatron-LM's `output`/release (torch_dist, weights only).

    `dtype` None keeps the stored type. Raises CheckpointError as `to_hf` does; `output` appears
    whole or not at all."""
    began = time.perf_counter()
    tensors = HfFolder(folder)
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with skeleton(folder, dtype or main_dtype(tensors.headers)) as whole:
            hf_check.check(whole.hf_shapes(), tensors.headers, folder, whole.bridge.hf_config)
            num_bytes = _write_torch_dist(whole, tensors, part / RELEASE)
        (part / TRACKER).write_text(RELEASE, encoding="utf-8")
        make_durable(part)
        shutil.rmtree(output, ignore_errors=True)
        part.rename(output)
        make_durable(output.parent, files=False)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Conversion(
        num_weights=len(whole.weights), num_bytes=num_bytes, seconds=time.perf_counter() - began
    )


def _write_torch_dist(whole: Skeleton, tensors: HfFolder, target: Path) -> int:
    entries = sharded.describe(whole.model)
    writer = torch_dist.Writer(target)
    try:
        for weight in whole.weights:
            tensor = whole.bridge.to_megatron(
                weight.agreed, [tensors[name] for name, _ in weight.hf]
            )
            for piece, offset, size in sharded.boxes(
                sharded.with_data(entries[weight.own], tensor)
            ):
                writer.add(
                    piece.key, piece.data.view(size), offset=offset, shape=piece.global_shape
                )
        for key in sharded.empty_states(whole.model):
            writer.add_object(key, None)
        writer.finish({"checkpoint_version": 3.0, "iteration": 0})
    finally:
        writer.close()
    return writer.num_bytes
