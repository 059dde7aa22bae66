"""The Hugging Face model, sharded over all ranks with FSDP2: float32 master weights, computed with
in --dtype, reduced in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from pipeline.core.errors import CheckpointError
from stages.learn.fsdp.attention import attention_of
from stages.learn.fsdp.weights import Weights

# other layers would carry one sample's state into the next
_PACKABLE = {"full_attention", "sliding_attention"}


def build_model(
    folder: Path, *, device: torch.device, dtype: torch.dtype, gradient_checkpointing: bool
) -> tuple[Any, str]:
    """(the model with this rank's shards of the folder's weights, the name of its attention).
    Raises CheckpointError.

    Blocks are read and sharded one after another: beside the shards, one whole block is in memory
    at a time."""
    attention = attention_of(device)
    model = _empty(folder, attention)
    _no_dropout(model)
    model.train()
    if gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise CheckpointError(
                f"{folder}: {type(model).__name__} has no gradient checkpointing: drop"
                " --gradient-checkpointing"
            )
        model.gradient_checkpointing_enable({"use_reentrant": False})
    weights = Weights(folder, model)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype is torch.float32 else dtype, reduce_dtype=torch.float32
    )
    names = {p: n for n, p in model.named_parameters()}
    for block in _blocks(model):
        _fill(block, names, weights, device)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    _fill(model, names, weights, device)
    kept = set(model.state_dict())
    for name, buffer in model.named_buffers():
        if name in kept:
            buffer.copy_(weights[name])
    model.to(device)  # what buffers are left on the host
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model, attention


def _empty(folder: Path, attention: str) -> Any:
    """The model of config.json, with buffers in place and parameters without memory."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: not a Hugging Face model folder (no config.json)")
    try:
        config = AutoConfig.from_pretrained(folder)
        sees = getattr(config, "vision_config", None) is not None
        maker: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        parts = (
            {name: attention if name == "text_config" else "sdpa" for name in config.sub_configs}
            if sees
            else attention
        )
        with _parameters_on_meta():
            model = maker.from_config(config, dtype=torch.float32, attn_implementation=parts)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise CheckpointError(
            f"{folder}/config.json: transformers makes no model of it: {error}"
        ) from error
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or _PACKABLE)
    if (
        not model._supports_attention_backend
        or getattr(model, "_is_stateful", False)
        or kinds - _PACKABLE
    ):
        what = ", ".join(sorted(kinds - _PACKABLE)) or "its own attention code"
        raise CheckpointError(
            f"{folder}: {type(model).__name__} ({what}) cannot take packed samples; expected a"
            f" causal model whose layers are {' or '.join(sorted(_PACKABLE))} and go through"
            " transformers' attention functions"
        )
    return model


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """While this context lasts, parameters are made without memory; buffers (rotary tables) are
    real."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _no_dropout(model: nn.Module) -> None:
    """Turns dropout off: the log-probs of two passes must be comparable."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def _blocks(model: Any) -> list[nn.Module]:
    """The modules that are gathered and let go as one: the layers that transformers says must not
    be split."""
    kinds = set(model._no_split_modules or ())
    found = [m for m in model.modules() if type(m).__name__ in kinds]
    inside = {id(part) for block in found for part in block.modules() if part is not block}
    return [block for block in found if id(block) not in inside]


def _fill(
    module: nn.Module, names: dict[nn.Parameter, str], weights: Weights, device: torch.device
) -> None:
    """Puts real parameters in the place of those on meta; tied ones stay tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for key, p in list(part._parameters.items()):
            if p is not None and p.is_meta:
                if p not in made:
                    made[p] = nn.Parameter(
                        weights[names[p]].to(device), requires_grad=p.requires_grad
                    )
                part._parameters[key] = made[p]
