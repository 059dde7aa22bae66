"""Between a Hugging Face folder and the parameters of its transformers model, tensor by tensor and
in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.core.errors import CheckpointError
from stages.learn.hf_folder import HfFolder, listed


class Weights:
    """The tensors of a folder by the model's names, on every rank, one at a time. Raises
    CheckpointError when they do not fit.

    Where the files have the model's names, every rank reads them. Where transformers renames or
    fuses tensors on loading, rank 0 loads the whole model on the host and sends each tensor."""

    def __init__(self, folder: Path, model: Any) -> None:
        self._folder = folder
        self._files = HfFolder(folder)
        shapes = {name: tuple(t.shape) for name, t in whole_state(model).items()}
        self._shapes = shapes
        self._whole: dict[str, Tensor] | None = None
        self._streams = set(shapes) <= self._files.names
        self._check(model)
        if not self._streams and dist.get_rank() == 0:
            self._whole = whole_state(_load_whole(folder, model))

    def _check(self, model: Any) -> None:
        """Checks that the names that we would write are those that are there."""
        ours = {
            n
            for name, shape in self._shapes.items()
            for n, _ in exported(model, name, torch.empty(shape, device="meta"))
        }
        patterns = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or [])
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        surplus = {
            n for n in self._files.names - ours if not any(re.search(p, n) for p in patterns)
        } - tied
        missing = ours - self._files.names
        if missing or surplus:
            parts = [
                f"{word} {listed(sorted(names))}"
                for word, names in (("missing", missing), ("not of this model", surplus))
                if names
            ]
            raise CheckpointError(
                f"{self._folder}: the safetensors do not fit config.json ({type(model).__name__}):"
                f" {'; '.join(parts)}"
            )

    def __getitem__(self, name: str) -> Tensor:
        """On the host, float32 (integers as they are). A collective where rank 0 sends."""
        shape = self._shapes[name]
        tensor = self._files[name] if self._streams else self._from_first_rank(name, shape)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self._folder}: {name} has shape {list(tensor.shape)}, config.json makes it"
                f" {list(shape)}"
            )
        return tensor.float() if tensor.is_floating_point() else tensor

    def _from_first_rank(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = (
            self._whole.pop(name).float().contiguous()
            if self._whole is not None
            else torch.empty(shape)
        )
        if dist.get_world_size() == 1:
            return tensor
        device = torch.device("cpu") if dist.get_backend() == "gloo" else torch.device("cuda")
        sent = tensor.to(device)
        dist.broadcast(sent, src=0)
        return sent.cpu()


def whole_state(model: Any) -> dict[str, Tensor]:
    """The parameters (tied ones once) and the buffers that checkpoints have, by the model's
    names."""
    parameters: dict[str, Tensor] = {n: p.detach() for n, p in model.named_parameters()}
    kept = set(model.state_dict())
    return {**parameters, **{n: b for n, b in model.named_buffers() if n in kept}}


def exported(model: Any, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
    """The tensors that checkpoints have for one of the model's: renamed, or taken apart (fused
    experts)."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, {name: tensor}).items()


def _load_whole(folder: Path, model: Any) -> Any:
    try:
        return type(model).from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from error
