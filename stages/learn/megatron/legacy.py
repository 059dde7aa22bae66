"""Megatron's older format, `torch`: one pickle for every model-parallel rank,
mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt.

It is read without running code in it, by torch's own unpickler with the few classes that Megatron's
`args` and generator states need. Files are memory-mapped, so that a weight costs its own bytes
only."""

from __future__ import annotations

import argparse
import codecs
import importlib
import pickle
import re
import signal
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.transformer.enums import AttnBackend
from torch import Tensor

from pipeline.core.errors import CheckpointError
from stages.learn.megatron.sharded import ALIASES, Mismatch
from stages.learn.megatron.skeleton import Skeleton, Weight

_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.(.*)$")
_LOCAL_EXPERT = re.compile(
    r"^(.*mlp\.experts)\.local_experts\.(\d+)\.(linear_fc[12])\.(weight|bias)$"
)
_EMBEDDING = "embedding.word_embeddings.weight"
_HARMLESS = [
    argparse.Namespace,
    types.SimpleNamespace,
    AttnBackend,
    signal.Signals,
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
]


class Legacy:
    """Implements `Source` for weights; the optimizer's state is not read."""

    def __init__(self, folder: Path, *, trust_pickle: bool) -> None:
        self.folder = folder
        files = _files(folder)
        self._tp = 1 + max(tp for tp, _, _ in files)
        states = {where: _load(file, trust_pickle) for where, file in files.items()}
        self._pp, self._ep = 1 + max(pp for _, pp, _ in states), 1 + max(ep for _, _, ep in states)
        if (
            self._ep == 1
            and self._pp > 1
            and all(_EMBEDDING in _chunks(s, folder)[0] for s in states.values())
        ):
            # Two numbers may be of pipeline or of expert ranks; only the first pipeline stage has
            # the embedding.
            states = {(tp, 0, pp): s for (tp, pp, _), s in states.items()}
            self._pp, self._ep = 1, self._pp
        if len(states) != self._tp * self._pp * self._ep:
            raise CheckpointError(
                f"{folder}: {len(states)} mp_rank_* folders for {self._tp} x {self._pp} x"
                f" {self._ep} ranks: some are missing"
            )
        self._ranks = {where: _chunks(state, folder) for where, state in states.items()}
        self._place = self._layers()

    def _layers(self) -> dict[int, tuple[int, int, int]]:
        """Layer -> (pipeline stage, virtual stage, its number there).

        Stages take turns: all first chunks, then all second ones.
        """
        place: dict[int, tuple[int, int, int]] = {}
        for chunk in range(len(self._ranks[0, 0, 0])):
            for stage in range(self._pp):
                held = {
                    int(m[1])
                    for name in self._ranks[0, stage, 0][chunk]
                    if (m := _LAYER.match(name))
                }
                for i in sorted(held):
                    place[len(place)] = (stage, chunk, i)
        return place

    def dtype(self) -> torch.dtype:
        """The type of most weights."""
        held = (
            t
            for chunk in self._ranks[0, 0, 0]
            for name, t in chunk.items()
            if name.startswith("decoder.")
        )
        largest = max(held, key=lambda t: t.numel(), default=None)
        if largest is None:
            raise CheckpointError(
                f"{self.folder}: holds no decoder.* weights; expected a Megatron-core GPT model"
            )
        return largest.dtype

    def compare(self, skeleton: Skeleton) -> Mismatch:
        found, used = Mismatch(), set[tuple[int, int, int, str]]()
        for weight in skeleton.weights:
            parts = self._parts(weight, used)
            if not parts:
                found.missing.append(weight.agreed)
            elif (shape := self._whole_shape(weight, parts)) != tuple(weight.like.shape):
                found.wrong.append(
                    f"{weight.agreed} is {list(shape)}, expected {list(weight.like.shape)}"
                )
        for (_, pp, ep), chunks in self._ranks.items():
            for number, chunk in enumerate(chunks):
                left = [n for n in chunk if (pp, number, ep, n) not in used]
                found.surplus += [
                    n for n in left if n not in found.surplus and not self._is_copy(n, skeleton)
                ]
        return found

    def _is_copy(self, name: str, skeleton: Skeleton) -> bool:
        """Is it the last stage's copy of tied embeddings?"""
        return name == "output_layer.weight" and bool(
            skeleton.model.share_embeddings_and_output_weights
        )

    def read(self, weight: Weight) -> Tensor:
        parts, want = self._parts(weight, set()), tuple(weight.like.shape)
        if len(parts) == 1 or not _is_split(weight):
            return _cut(parts[0], want)
        if tuple(parts[0].shape) == want:  # experts that are not split over tensor ranks
            return parts[0]
        if _is_gated(weight):
            halves = [part.chunk(2) for part in parts]
            return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])
        return _cut(torch.cat(parts, weight.like.partition_dim), want)

    def _whole_shape(self, weight: Weight, parts: list[Tensor]) -> tuple[int, ...]:
        shape, want = list(parts[0].shape), tuple(weight.like.shape)
        if tuple(shape) == want:
            return want
        if _is_split(weight) and len(shape) == len(want):
            shape[weight.like.partition_dim] *= len(parts)
        if (
            weight.own in (_EMBEDDING, "output_layer.weight")
            and shape[1:] == list(want[1:])
            and shape[0] >= want[0]
        ):
            shape[0] = want[0]  # padding
        return tuple(shape)

    def _parts(self, weight: Weight, used: set[tuple[int, int, int, str]]) -> list[Tensor]:
        """The weight's pieces on the tensor ranks; empty when they are not all there.

        `used`: gets where they were found.
        """
        for stage, chunk, expert_rank, name in self._homes(weight):
            ranks = [self._ranks[tp, stage, expert_rank][chunk] for tp in range(self._tp)]
            if all(name in held for held in ranks):
                used.update((stage, chunk, ep, name) for ep in range(self._ep))
                return [held[name] for held in ranks]
        return []

    def _homes(self, weight: Weight) -> Iterator[tuple[int, int, int, str]]:
        """(stage, chunk, expert rank, name) under which the weight may be held."""
        found = _LAYER.match(weight.own)
        if not found:
            last = len(self._ranks[0, 0, 0]) - 1
            stage, chunk = (0, 0) if weight.own.startswith("embedding.") else (self._pp - 1, last)
            yield stage, chunk, 0, weight.own
            return
        if int(found[1]) not in self._place:
            return
        stage, chunk, number = self._place[int(found[1])]
        rest, expert_rank, grouped = found[2], 0, None
        if expert := _LOCAL_EXPERT.match(rest):
            held = [
                n
                for n in self._ranks[0, stage, 0][chunk]
                if n.startswith(f"decoder.layers.{number}.mlp.experts.")
            ]
            each = sum(1 for n in held if re.search(r"linear_fc2\.weight\d*$", n)) or 1
            expert_rank, local = divmod(int(expert[2]), each)
            rest = f"{expert[1]}.local_experts.{local}.{expert[3]}.{expert[4]}"
            grouped = f"{expert[1]}.{expert[3]}.{expert[4]}{local}"
        if expert_rank >= self._ep:
            return
        others = [
            rest.replace(a, b)
            for alone, fused in ALIASES
            for a, b in ((alone, fused), (fused, alone))
            if a in f"{rest}"
        ]
        for name in (rest, *([grouped] if grouped else []), *others):
            yield stage, chunk, expert_rank, f"decoder.layers.{number}.{name}"


def _files(folder: Path) -> dict[tuple[int, int, int], Path]:
    found = {}
    for path in sorted(folder.glob("mp_rank_*")):
        name = _FOLDER.fullmatch(path.name)
        file = next(
            (path / f for f in ("model_optim_rng.pt", "model_rng.pt") if (path / f).is_file()), None
        )
        if name and file:
            found[int(name[1]), int(name[2] or 0), int(name[3] or 0)] = file
    if (0, 0, 0) not in found:
        raise CheckpointError(f"{folder}: no mp_rank_00*/model_optim_rng.pt in it")
    return found


def _load(file: Path, trust_pickle: bool) -> dict[str, Any]:
    # of the generators' states, under both its names
    array: Any = importlib.import_module("numpy._core.multiarray")._reconstruct
    try:
        with torch.serialization.safe_globals(
            [*_HARMLESS, codecs.encode, array, (array, "numpy.core.multiarray._reconstruct")]
        ):
            state: dict[str, Any] = torch.load(
                file, map_location="cpu", weights_only=not trust_pickle, mmap=True
            )
    except pickle.UnpicklingError as error:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        raise CheckpointError(
            f"{file}: its pickle names {', '.join(sorted(names)) or 'unknown classes'}: reading it"
            " could run code. If you trust where it comes from, add --trust-pickle"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, AttributeError, ImportError) as error:
        raise CheckpointError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    return state


def _chunks(state: dict[str, Any], folder: Path) -> list[dict[str, Tensor]]:
    """The model chunks of one rank: `model`, or one a virtual stage."""
    keys = (
        ["model"]
        if "model" in state
        else sorted((k for k in state if re.fullmatch(r"model\d+", k)), key=lambda k: int(k[5:]))
    )
    if not keys:
        raise CheckpointError(f"{folder}: no model in it (keys {', '.join(map(str, state))})")
    if any("language_model" in state[k] for k in keys):
        raise CheckpointError(
            f"{folder}: of Megatron's legacy model classes (language_model.*): expected a"
            " Megatron-core GPT model"
        )
    return [
        {
            n: t
            for n, t in state[k].items()
            if isinstance(t, Tensor) and not n.endswith("_extra_state")
        }
        for k in keys
    ]


def _is_split(weight: Weight) -> bool:
    return bool(getattr(weight.like, "tensor_model_parallel", False))


def _is_gated(weight: Weight) -> bool:
    return len(weight.hf) == 2 and ".linear_fc1." in weight.own


def _cut(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tensor[: shape[0]]
