"""Model families: what a Hugging Face config.json means in Megatron's fields. No torch here.

`shape_of` gives what the checkpoint decides (a flag may repeat it, not change it), `HABITS` what is only a default. Sources: the
modelling code of transformers for each `model_type`, and Megatron-core 0.16.1's TransformerConfig and MLATransformerConfig.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.errors import CheckpointError

# Routing in RL: no auxiliary loss and a frozen expert bias (the reward shapes the model, balance was learnt before), scores in float32
# as the engine has them.
HABITS: dict[str, Any] = {
    "moe_aux_loss_coeff": 0.0,
    "moe_router_bias_update_rate": 0.0,
    "moe_router_dtype": "fp32",
    "moe_router_load_balancing_type": "none",
    "moe_token_dispatcher_type": "alltoall",
    "moe_grouped_gemm": True,
}


def _dense(hf: Any) -> dict[str, Any]:
    return {
        "num_layers": hf.num_hidden_layers,
        "hidden_size": hf.hidden_size,
        "ffn_hidden_size": hf.intermediate_size,
        "num_attention_heads": hf.num_attention_heads,
        "num_query_groups": hf.num_key_value_heads,
        "kv_channels": head_dim(hf),
        "layernorm_epsilon": hf.rms_norm_eps,
        "normalization": "RMSNorm",
        "activation_func": "silu",
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "qk_layernorm": False,
        "multi_latent_attention": False,
        "rotary_interleaved": False,
    }


def head_dim(hf: Any) -> int:
    return int(getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads)


def _qwen2(hf: Any) -> dict[str, Any]:
    return {**_dense(hf), "add_qkv_bias": True}


def _qwen3(hf: Any) -> dict[str, Any]:
    return {**_dense(hf), "add_qkv_bias": hf.attention_bias, "qk_layernorm": True}


def _qwen3_moe(hf: Any) -> dict[str, Any]:
    dense = set(hf.mlp_only_layers or ())
    sparse = [int(i not in dense and (i + 1) % hf.decoder_sparse_step == 0) for i in range(hf.num_hidden_layers)]
    # Softmax over the chosen is softmax over all, made to add up to one.
    score = {"moe_router_score_function": "softmax", "moe_router_pre_softmax": not hf.norm_topk_prob}
    return {**_qwen3(hf), **_experts(hf, hf.num_experts, sparse), **score}


def _experts(hf: Any, num: int, sparse: list[int]) -> dict[str, Any]:
    return {
        "num_moe_experts": num,
        "moe_router_topk": hf.num_experts_per_tok,
        "moe_ffn_hidden_size": hf.moe_intermediate_size,
        "moe_layer_freq": sparse,
    }


_SHAPES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "llama": _dense,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
}
MODEL_TYPES = tuple(_SHAPES)


def shape_of(hf: Any) -> dict[str, Any]:
    """TransformerConfig's fields that the checkpoint decides, by name; values as a command line would give them.

    Raises CheckpointError for a family or a variant that Megatron-core or this project cannot express.
    """
    if hf.model_type not in _SHAPES:
        raise CheckpointError(f"model_type {hf.model_type!r} is not supported; expected one of {', '.join(MODEL_TYPES)}")
    for wrong, what in _unsupported(hf):
        if wrong:
            raise CheckpointError(f"a {hf.model_type} with {what} is not supported")
    return _SHAPES[hf.model_type](hf)


def _unsupported(hf: Any) -> list[tuple[bool, str]]:
    llama = hf.model_type == "llama"
    return [
        (llama and (hf.attention_bias or hf.mlp_bias), "attention_bias or mlp_bias"),
        (bool(getattr(hf, "use_sliding_window", False)), "use_sliding_window"),
        (getattr(hf, "hidden_act", "silu") != "silu", f"hidden_act {getattr(hf, 'hidden_act', None)!r}"),
    ]


def rope_of(hf: Any) -> dict[str, Any]:
    """GPTModel's rotary arguments (transformers 5 keeps them in rope_parameters). Raises CheckpointError."""
    rope = dict(getattr(hf, "rope_parameters", None) or getattr(hf, "rope_scaling", None) or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", getattr(hf, "rope_theta", None))
    if theta is None:
        raise CheckpointError(f"config.json of {hf.model_type} has no rope_theta")
    out: dict[str, Any] = {"rotary_base": theta}
    if kind == "linear":
        return {**out, "seq_len_interpolation_factor": rope["factor"]}
    if kind == "llama3":
        fixed = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        if wrong := {k: rope.get(k) for k, v in fixed.items() if rope.get(k) != v}:
            raise CheckpointError(f"rope_type llama3 with {wrong}: Megatron-core has these fixed at {fixed}")
        return {**out, "rope_scaling": True, "rope_scaling_factor": rope["factor"]}
    if kind != "default":
        raise CheckpointError(f"rope_type {kind!r} is not supported: expected default, linear or llama3")
    return out
