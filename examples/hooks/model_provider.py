"""Trains the layers alone: the words' embedding and the output layer stay as they came.

--custom-model-provider-path examples/hooks/model_provider.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def model_provider(
    pre_process: bool, post_process: bool, vp_stage: int | None = None, *, build: Callable[..., Any]
) -> Any:
    """`build()` makes the part of the model that this rank would have."""
    model = build()
    if pre_process:
        model.embedding.requires_grad_(False)
    if post_process and model.output_layer.weight is not None:  # None where it is the embedding's
        model.output_layer.requires_grad_(False)
    return model
