"""Names of weights: a model chunk's own, and those that every rank and both layer specs agree on,
which mbridge knows.

The agreed names are TransformerEngine's, with global layer and expert numbers: a norm belongs to
the linear layer behind it, and the weights of experts stand side by side
(`mlp.experts.linear_fc1.weight7`)."""

from __future__ import annotations

import re
from typing import Any

import torch
from megatron.core import parallel_state as mpu

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.(.*)$")
_LOCAL_EXPERT = re.compile(r"^mlp\.experts\.local_experts\.(\d+)\.(linear_fc[12])\.(weight|bias)$")
_GROUPED_EXPERT = re.compile(r"^(mlp\.experts\.linear_fc[12]\.(?:weight|bias))(\d+)$")
_EXPERT_BIAS = ".mlp.router.expert_bias"


def is_expert(name: str) -> bool:
    """Whether the weight of this agreed name belongs to one routed expert, and so to one
    expert-parallel rank."""
    return ".mlp.experts.linear_fc" in name


def expert_of(name: str) -> tuple[str, int]:
    """(everything before the number, the number) of an expert's agreed name."""
    found = re.match(r"^(.*\D)(\d+)$", name)
    assert found, name
    return found[1], int(found[2])


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Own name -> tensor of everything that a checkpoint holds: parameters, and the routers' expert
    biases (buffers)."""
    out: dict[str, torch.Tensor] = dict(model.named_parameters())
    out.update((name, b) for name, b in model.named_buffers() if name.endswith(_EXPERT_BIAS))
    return out


def expert_biases(model: torch.nn.Module) -> list[torch.Tensor]:
    """The routers' expert biases as they are now: a model that is converted to another dtype gets
    new ones."""
    return [b for name, b in model.named_buffers() if name.endswith(_EXPERT_BIAS)]


def agreed_names(model: Any, config: Any) -> dict[str, str]:
    """Own name -> agreed name of `weights_of(model)`."""
    numbers = [layer.layer_number - 1 for layer in model.decoder.layers]
    routed = [hasattr(layer.mlp, "router") for layer in model.decoder.layers]
    out = {}
    for name in weights_of(model):
        if not (found := _LAYER.match(name)):
            out[name] = name
            continue
        place = int(found[1])
        out[name] = (
            f"decoder.layers.{numbers[place]}.{_in_layer(found[2], config, routed=routed[place])}"
        )
    return out


def _in_layer(name: str, config: Any, *, routed: bool) -> str:
    if found := _LOCAL_EXPERT.match(name):
        name = f"mlp.experts.{found[2]}.{found[3]}{found[1]}"
    if found := _GROUPED_EXPERT.match(name):
        first = mpu.get_expert_model_parallel_rank() * (
            config.num_moe_experts // mpu.get_expert_model_parallel_world_size()
        )
        return f"{found[1]}{first + int(found[2])}"
    if config.multi_latent_attention:
        name = name.replace(
            "self_attention.q_layernorm.", "self_attention.linear_q_up_proj.layer_norm_"
        )
        name = name.replace(
            "self_attention.kv_layernorm.", "self_attention.linear_kv_up_proj.layer_norm_"
        )
    else:
        name = name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
    return name if routed else name.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")
