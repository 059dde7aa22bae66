"""Model families: what a Hugging Face config.json means in Megatron's fields. No torch here.

`shape_of` gives what the checkpoint decides (a flag may repeat it, not change it), `HABITS` what is
only a default. Sources: the modelling code of transformers for each `model_type`, and Megatron-core
0.16.1's TransformerConfig and MLATransformerConfig."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.core.errors import CheckpointError

# Routing in RL: no auxiliary loss and a frozen expert bias (the reward shapes the model, balance
# was learnt before), scores in float32 as the engine has them.
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
    sparse = [
        int(i not in dense and (i + 1) % hf.decoder_sparse_step == 0)
        for i in range(hf.num_hidden_layers)
    ]
    # Softmax over the chosen is softmax over all, made to add up to one.
    score = {
        "moe_router_score_function": "softmax",
        "moe_router_pre_softmax": not hf.norm_topk_prob,
    }
    return {**_qwen3(hf), **_experts(hf, hf.num_experts, sparse), **score}


def _glm4(hf: Any) -> dict[str, Any]:
    return {**_dense(hf), "add_qkv_bias": hf.attention_bias, "rotary_interleaved": True}


def _glm4_moe(hf: Any) -> dict[str, Any]:
    own = {"add_qkv_bias": hf.attention_bias, "qk_layernorm": hf.use_qk_norm}
    return {**_dense(hf), **own, **_balanced_by_bias(hf)}


def _deepseek_v3(hf: Any) -> dict[str, Any]:
    rope = _rope_parameters(hf)
    yarn = rope.get("rope_type", rope.get("type")) == "yarn"
    fields = {
        **_dense(hf),
        **_balanced_by_bias(hf),
        "multi_latent_attention": True,
        "qk_layernorm": True,
        "q_lora_rank": hf.q_lora_rank,
        "kv_lora_rank": hf.kv_lora_rank,
        "qk_head_dim": hf.qk_nope_head_dim,
        "qk_pos_emb_head_dim": hf.qk_rope_head_dim,
        "v_head_dim": hf.v_head_dim,
        "kv_channels": hf.v_head_dim,
        "rope_type": "yarn" if yarn else "rope",
        "rotary_base": _theta(hf, rope),
        "rotary_scaling_factor": rope["factor"] if yarn else 1.0,
    }
    if yarn:  # transformers' defaults, where config.json is silent
        fields["mscale"] = rope.get("mscale", 1.0)
        fields["mscale_all_dim"] = rope.get("mscale_all_dim", 0.0)
        fields["beta_fast"], fields["beta_slow"] = (
            rope.get("beta_fast", 32),
            rope.get("beta_slow", 1),
        )
        fields["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    return fields


def _balanced_by_bias(hf: Any) -> dict[str, Any]:
    """DeepSeek-V3's experts: sigmoid scores, a bias that only chooses, groups of experts, shared
    experts, dense layers first."""
    dense = min(hf.first_k_dense_replace, hf.num_hidden_layers)
    fields = {
        **_experts(hf, hf.n_routed_experts, [0] * dense + [1] * (hf.num_hidden_layers - dense)),
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_topk_scaling_factor": hf.routed_scaling_factor,
        "moe_shared_expert_intermediate_size": hf.moe_intermediate_size * hf.n_shared_experts,
    }
    if hf.n_group > 1:
        fields["moe_router_num_groups"], fields["moe_router_group_topk"] = hf.n_group, hf.topk_group
    return fields


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
    "glm4": _glm4,
    "glm4_moe": _glm4_moe,
    "deepseek_v3": _deepseek_v3,
}
MODEL_TYPES = tuple(_SHAPES)
# model types that transformers does not know, and the one whose modelling code theirs is
SAME_AS = {"kimi_k2": "deepseek_v3"}


def shape_of(hf: Any) -> dict[str, Any]:
    """TransformerConfig's fields that the checkpoint decides, by name; values as a command line
    would give them.

    Raises CheckpointError for a family or a variant that Megatron-core or this project cannot
    express."""
    if hf.model_type not in _SHAPES:
        raise CheckpointError(
            f"model_type {hf.model_type!r} is not supported; expected one of"
            f" {', '.join(MODEL_TYPES)}"
        )
    for wrong, what in _unsupported(hf):
        if wrong:
            raise CheckpointError(f"a {hf.model_type} with {what} is not supported")
    return _SHAPES[hf.model_type](hf)


def _unsupported(hf: Any) -> list[tuple[bool, str]]:
    kind, bias_balanced = hf.model_type, hf.model_type in ("glm4_moe", "deepseek_v3")
    groups, chosen = getattr(hf, "n_group", 1) or 1, getattr(hf, "topk_group", 1) or 1
    return [
        (kind == "llama" and (hf.attention_bias or hf.mlp_bias), "attention_bias or mlp_bias"),
        (kind == "deepseek_v3" and hf.attention_bias, "attention_bias"),
        (
            kind == "deepseek_v3" and not getattr(hf, "rope_interleave", True),
            "rope_interleave false",
        ),
        (bias_balanced and not hf.norm_topk_prob, "norm_topk_prob false"),
        # Megatron ranks a group by the sum of its best topk / group_topk scores, transformers by
        # the best two.
        (
            bias_balanced and groups > 1 and hf.num_experts_per_tok != 2 * chosen,
            f"num_experts_per_tok other than {2 * chosen}",
        ),
        (bool(getattr(hf, "use_sliding_window", False)), "use_sliding_window"),
        (
            getattr(hf, "hidden_act", "silu") != "silu",
            f"hidden_act {getattr(hf, 'hidden_act', None)!r}",
        ),
    ]


def _rope_parameters(hf: Any) -> dict[str, Any]:
    """transformers 5 keeps all of them in rope_parameters."""
    return dict(getattr(hf, "rope_parameters", None) or getattr(hf, "rope_scaling", None) or {})


def _theta(hf: Any, rope: dict[str, Any]) -> float:
    theta = rope.get("rope_theta", getattr(hf, "rope_theta", None))
    if theta is None:
        raise CheckpointError(f"config.json of {hf.model_type} has no rope_theta")
    return float(theta)


def rope_of(hf: Any) -> dict[str, Any]:
    """The rotary arguments of GPTModel. Raises CheckpointError for forms that it does not have."""
    rope = _rope_parameters(hf)
    kind = rope.get("rope_type", rope.get("type", "default"))
    out: dict[str, Any] = {"rotary_base": _theta(hf, rope)}
    if hf.model_type == "deepseek_v3" and kind in ("default", "yarn"):
        return out  # its attention makes its own tables, from TransformerConfig
    partial = rope.get("partial_rotary_factor", getattr(hf, "partial_rotary_factor", None))
    if partial is not None:
        out["rotary_percent"] = partial
    if kind == "linear":
        return {**out, "seq_len_interpolation_factor": rope["factor"]}
    if kind == "llama3":
        fixed = {
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        if wrong := {k: rope.get(k) for k, v in fixed.items() if rope.get(k) != v}:
            raise CheckpointError(
                f"rope_type llama3 with {wrong}: Megatron-core has these fixed at {fixed}"
            )
        return {**out, "rope_scaling": True, "rope_scaling_factor": rope["factor"]}
    if kind != "default":
        raise CheckpointError(
            f"rope_type {kind!r} is not supported for {hf.model_type}: expected default, linear or"
            " llama3"
        )
    return out
