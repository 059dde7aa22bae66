"""The frozen reference model: a second set of this rank's weights on the host, lent to the model
for forward passes.

One model, two sets of weights, as in slime: the parameters' storage is exchanged, nothing of the
policy is copied or converted, and every parallel layout works as it does for the policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.core.find_checkpoint import find_torch_dist, find_weights
from stages.learn.megatron import checkpoint
from stages.learn.megatron.balance import expert_biases
from stages.learn.megatron.bridge import load_hf_weights
from stages.learn.page_locked import empty_likes


class Reference:
    """The reference begins as a copy of the policy."""

    def __init__(self, built: Any) -> None:
        self._built = built
        self._parameters: list[Tensor] = [
            *(p for m in built.models for p in m.parameters()),
            *expert_biases(built.models),
        ]
        self._tensors = empty_likes([p.detach() for p in self._parameters], built.device)
        self.copy_policy()

    @torch.no_grad()
    def copy_policy(self) -> None:
        """Makes the policy, as it is now, the reference."""
        with self._no_gather_in_flight():
            for kept, p in zip(self._tensors, self._parameters, strict=True):
                kept.copy_(p.detach())

    @contextlib.contextmanager
    def in_place(self, *, write: bool = False) -> Iterator[None]:
        """While this context lasts the model computes with the reference's weights; with `write`
        what is loaded into it there stays in the reference."""
        with self._no_gather_in_flight():
            policy = [p.data for p in self._parameters]
            try:
                for p, kept in zip(self._parameters, self._tensors, strict=True):
                    p.data = kept.to(p.device, non_blocking=True)  # on CPU the very tensor
                yield
                if write:
                    for p, kept in zip(self._parameters, self._tensors, strict=True):
                        kept.copy_(p.detach())
            finally:
                for p, data in zip(self._parameters, policy, strict=True):
                    p.data = data

    @contextlib.contextmanager
    def _no_gather_in_flight(self) -> Iterator[None]:
        """With --overlap-param-gather the first forward pass after a step still writes into the
        policy's weights: finish that first."""
        overlapped = [d for d in self._built.ddp if d.ddp_config.overlap_param_gather]
        for ddp in overlapped:
            ddp.disable_forward_pre_hook(param_sync=True)
        try:
            yield
        finally:
            for ddp in overlapped:
                ddp.enable_forward_pre_hook()

    def load_weights(self, path: Path) -> None:
        """--ref-load: a Hugging Face or torch_dist folder of the policy's shape.

        Raises CheckpointError.
        """
        weights = find_weights(path, "--ref-load")
        if weights.format == "hf":
            with self.in_place(write=True):
                load_hf_weights(self._built.bridge, self._built.models, weights.folder)
        else:
            self.load(find_torch_dist(path, "--ref-load"))

    def save(self, path: Path, *, write: checkpoint.Write | None = None) -> Any:
        """Writes the reference. Every rank calls it."""
        with self.in_place():
            return checkpoint.save_models(self._built.models, path, write=write)

    def load(self, path: Path) -> None:
        """Reads what `save` wrote. Raises CheckpointError."""
        with self.in_place(write=True):
            checkpoint.load_models(self._built.models, path)
