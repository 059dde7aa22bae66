"""Does a Hugging Face folder hold what the model needs? This is told by names and shapes, before
any tensor is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state as mpu

from pipeline.core.errors import CheckpointError
from stages.learn import rendezvous
from stages.learn.hf_folder import TensorHeader, read_headers
from stages.learn.megatron.sharded import Mismatch

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def check_hf_weights(bridge: Any, models: Sequence[torch.nn.Module], path: Path) -> None:
    """Raises CheckpointError on every rank that lists what `path` lacks, and what it has that no
    rank's model takes. Shapes are compared where ranks hold whole tensors; elsewhere a wrong one
    shows when the shards are loaded."""
    try:
        headers: Mapping[str, TensorHeader] | str = read_headers(path)
    except CheckpointError as error:
        headers = str(error)  # of this rank; the others must not wait for it below
    whole = (
        mpu.get_tensor_model_parallel_world_size() == 1
        and mpu.get_expert_tensor_parallel_world_size() == 1
    )
    own: dict[str, tuple[int, ...] | None] = {}
    for model in models:
        tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        for name, agreed in bridge.names(model).items():
            if whole:
                own.update(
                    (hf, tuple(t.shape)) for hf, t in bridge.to_hf(agreed, tensors[name].to("meta"))
                )
            else:
                own.update(dict.fromkeys(bridge.hf_names(agreed)))
    every: dict[str, tuple[int, ...] | None] = {}
    for part in rendezvous.gather_over_world(own):
        every.update(part)
    if isinstance(headers, str):
        raise CheckpointError(headers)
    check(every, headers, path, bridge.hf_config)


def check(
    expected: Mapping[str, tuple[int, ...] | None],
    headers: Mapping[str, TensorHeader],
    path: Path,
    hf_config: Any,
) -> None:
    """`expected`: names with shapes, or None for any. Raises CheckpointError."""
    found = Mismatch()
    found.missing = [name for name in expected if name not in headers]
    found.wrong = [
        f"{name} is {list(headers[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if shape is not None and name in headers and headers[name].shape != shape
    ]
    found.surplus = [
        name
        for name in headers
        if name not in expected and not _may_be_left(name, expected, hf_config)
    ]
    if found:
        raise CheckpointError(
            f"{path}: the safetensors do not fit its config.json ({hf_config.model_type}): {found}"
        )


def _may_be_left(name: str, expected: Mapping[str, Any], hf_config: Any) -> bool:
    """May the tensor be left over? So may buffers that are computed, a tied head stored twice,
    scales of quantised weights, and layers that predict further tokens."""
    if name.endswith(("rotary_emb.inv_freq", ".masked_bias", ".attn.bias")):
        return True
    if name == "lm_head.weight" and hf_config.tie_word_embeddings:
        return True
    if name.removesuffix("_scale_inv") in expected:
        return True
    layer = _LAYER.search(name)
    return bool(
        layer
        and getattr(hf_config, "num_nextn_predict_layers", 0)
        and int(layer[1]) >= hf_config.num_hidden_layers
    )
