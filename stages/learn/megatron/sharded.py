"""Megatron's sharded descriptions of a model's weights, matched with what a torch_dist checkpoint
holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from megatron.core import parallel_state as mpu
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
)

from stages.learn.hf_folder import listed

# A norm in front of a linear layer belongs to that layer in TransformerEngine's spec, and stands
# alone in the local one.
ALIASES = (
    ("input_layernorm.", "self_attention.linear_qkv.layer_norm_"),
    ("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"),
    ("self_attention.q_layernorm.", "self_attention.linear_q_up_proj.layer_norm_"),
    ("self_attention.kv_layernorm.", "self_attention.linear_kv_up_proj.layer_norm_"),
)
# keys of a whole training checkpoint that begin so
_NOT_WEIGHTS = ("optimizer", "chained_", "rng_state", "rerun_state")


class TensorSource(Protocol):
    """A checkpoint's tensors: torch_dist.Reader."""

    @property
    def tensors(self) -> Mapping[str, Any]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...


def describe(model: Any, *, by_layer: bool = False) -> dict[str, Any]:
    """Own name -> ShardedTensor, or factory of several. `by_layer`: keys with a layer's number, as
    newer releases may write them, instead of one tensor over all layers."""
    metadata: dict[str, Any] = {
        "dp_cp_group": mpu.get_data_parallel_group(with_context_parallel=True)
    }
    if by_layer:
        metadata["singleton_local_shards"] = True
    state = model.sharded_state_dict(metadata=metadata)
    return {
        name: entry
        for name, entry in state.items()
        if isinstance(entry, ShardedTensor | ShardedTensorFactory)
    }


def pieces(entry: Any) -> list[Any]:
    """The ShardedTensors of an entry (a gated linear_fc1 is gate and up)."""
    if isinstance(entry, ShardedTensor):
        return [entry]
    built = entry.build()
    return list(built if isinstance(built, list | tuple) else built.values())


def fitted(entry: Any, held: TensorSource) -> Any:
    """The entry with the key under which the checkpoint holds it, where that is one of its other
    names; else the entry as it is."""
    if any(p.key in held.tensors for p in pieces(entry)):
        return entry
    for alone, fused in ALIASES:
        for old, new in ((alone, fused), (fused, alone)):
            if f".{old}" in entry.key:
                other = dataclasses.replace(entry, key=entry.key.replace(f".{old}", f".{new}"))
                if any(p.key in held.tensors for p in pieces(other)):
                    return other
    return entry


def fitted_all(model: Any, held: TensorSource) -> dict[str, Any]:
    """Own name -> description under which the checkpoint holds it: stacked over layers, or layer by
    layer; whichever has more of it."""
    best: dict[str, Any] = {}
    most = -1
    for by_layer in (False, True):
        entries = {
            name: fitted(entry, held) for name, entry in describe(model, by_layer=by_layer).items()
        }
        every = [p.key in held.tensors for entry in entries.values() for p in pieces(entry)]
        if sum(every) > most:
            best, most = entries, sum(every)
        if all(every):
            break
    return best


class Mismatch:
    """What does not fit between a model and a checkpoint. Empty (false) when all does."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.surplus: list[str] = []
        self.wrong: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.missing or self.surplus or self.wrong)

    def __str__(self) -> str:
        parts = (
            ("missing", self.missing),
            ("surplus", self.surplus),
            ("of another shape", self.wrong),
        )
        return "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in parts if names)


def compare(entries: Iterable[Any], held: TensorSource, *, num_words: int, whole: bool) -> Mismatch:
    """Fitted `entries` against the checkpoint. `num_words`: of the vocabulary without padding.
    `whole`: they are all of the model, so that what is left over is surplus."""
    found, used = Mismatch(), set[str]()
    for piece in (p for entry in entries for p in pieces(entry)):
        if piece.key in used:
            continue  # of another layer
        used.add(piece.key)
        if piece.key not in held.tensors:
            found.missing.append(piece.key)
        elif not _fits(piece, held.shape(piece.key), num_words):
            found.wrong.append(
                f"{piece.key} is {list(held.shape(piece.key))}, expected {list(piece.global_shape)}"
            )
    if whole:
        found.surplus = [
            k for k in held.tensors if k not in used and not k.startswith(_NOT_WEIGHTS)
        ]
    return found


def _fits(piece: Any, shape: tuple[int, ...], num_words: int) -> bool:
    want = tuple(piece.global_shape)
    if piece.allow_shape_mismatch:  # the vocabulary, padded differently
        return len(shape) == len(want) and shape[0] >= num_words and shape[1:] == want[1:]
    return shape == want


def empty_states(model: Any) -> Iterator[str]:
    """Keys of the `_extra_state` objects that Megatron looks for beside the weights
    (TransformerEngine's fp8 scales; empty in others): this model's own, and of the modules that
    have one in TransformerEngine's spec."""
    state = model.sharded_state_dict(
        metadata={"dp_cp_group": mpu.get_data_parallel_group(with_context_parallel=True)}
    )
    own = [e for e in state.values() if isinstance(e, ShardedObject)]
    yield from dict.fromkeys(e.unique_key for e in own)
    for entry in own:
        if ".self_attention.linear_proj." in entry.key:
            for module in ("core_attention", "q_layernorm", "k_layernorm"):
                yield entry.unique_key.replace("linear_proj", module)
    yield from (
        "decoder.final_layernorm._extra_state/shard_0_1",
        "output_layer._extra_state/shard_0_1",
    )


def boxes(entry: Any) -> Iterator[tuple[Any, tuple[int, ...], tuple[int, ...]]]:
    """(piece, offset, size) of an entry's pieces in the checkpoint's tensors; the axes of layers
    and experts come first."""
    for piece in pieces(entry):
        yield (
            piece,
            tuple(piece.global_offset),
            (1,) * piece.prepend_axis_num + tuple(piece.local_shape),
        )


def with_data(entry: Any, tensor: torch.Tensor) -> Any:
    """The entry that describes `tensor`, the whole weight."""
    own_type = {"dtype": tensor.dtype} if isinstance(entry, ShardedTensor) else {}
    return dataclasses.replace(entry, data=tensor, **own_type)


def merged(entry: Any, parts: list[torch.Tensor]) -> torch.Tensor:
    """The weight from its pieces, in their order."""
    whole: torch.Tensor = parts[0] if isinstance(entry, ShardedTensor) else entry.merge_fn(parts)
    return whole
