"""The frozen reference model: a second set of this rank's shards on the host, lent to the model for
forward passes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.learn.fsdp import checkpoint
from stages.learn.fsdp.weights import Weights
from stages.learn.page_locked import empty_likes
from stages.learn.rank import ReferenceKeeper


class Reference(ReferenceKeeper):
    """The reference begins as a copy of the policy, or with the weights of `folder`.

    Raises CheckpointError for weights of another shape."""

    def __init__(self, model: Any, folder: str | None) -> None:
        self._model = model
        self._parameters: dict[str, Any] = dict(model.named_parameters())
        local = self._local()
        self._kept = empty_likes(local, local[0].device)
        self.copy_policy()
        if folder:
            self._load_folder(Path(folder))

    def _local(self) -> list[Tensor]:
        return [p.detach().to_local() for p in self._parameters.values()]

    @torch.no_grad()
    def copy_policy(self) -> None:
        """Makes the policy, as it is now, the reference."""
        for kept, local in zip(self._kept, self._local(), strict=True):
            kept.copy_(local)

    @contextlib.contextmanager
    def in_place(self, *, write: bool = False) -> Iterator[None]:
        """While this context lasts the model has the reference's weights; with `write` what is put
        there stays in the reference."""
        local = self._local()
        policy = [t.clone() for t in local]
        try:
            for t, kept in zip(local, self._kept, strict=True):
                t.copy_(kept, non_blocking=True)
            yield
            if write:
                self.copy_policy()
        finally:
            for t, was in zip(local, policy, strict=True):
                t.copy_(was)

    def _load_folder(self, folder: Path) -> None:
        from torch.distributed.tensor import distribute_tensor

        weights = Weights(folder, self._model)
        with self.in_place(write=True):
            for name, p in self._parameters.items():
                whole = distribute_tensor(
                    weights[name].to(p.device), p.device_mesh, p.placements, src_data_rank=None
                )
                p.detach().to_local().copy_(whole.to_local())

    def _tensors(self) -> dict[str, Tensor]:
        return {f"model.{name}": p.detach() for name, p in self._parameters.items()}

    def save(self, path: Path) -> None:
        """Writes the reference. Every rank calls it."""
        with self.in_place():
            checkpoint.save(path, self._tensors(), {})

    def load(self, path: Path) -> None:
        """Reads what `save` wrote. Raises CheckpointError."""
        with self.in_place(write=True):
            checkpoint.load(path, self._tensors())
