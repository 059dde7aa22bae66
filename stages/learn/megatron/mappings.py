"""Hugging Face names by family, in mbridge's style: its own tables where it has them, ours where it
has none or not all."""

from __future__ import annotations

from typing import Any, ClassVar

from mbridge.core.bridge import _MODEL_REGISTRY
from mbridge.core.llm_bridge import LLMBridge
from mbridge.models import DeepseekV3Bridge, Qwen2Bridge, Qwen3MoEBridge
from megatron.core.transformer import MLATransformerConfig

_LAYER = "model.layers.{layer_number}."


class Qwen3MoE(Qwen3MoEBridge):
    """With dense layers in between (`mlp_only_layers`, `decoder_sparse_step`), which mbridge leaves
    out."""

    _MLP_MAPPING: ClassVar = {**Qwen3MoEBridge._MLP_MAPPING, **Qwen2Bridge._MLP_MAPPING}


class Glm4(LLMBridge):
    """GLM-4-0414 and GLM-Z1: gate and up projection in one tensor, and a norm behind attention and
    behind the MLP (spec.py)."""

    _ATTENTION_MAPPING: ClassVar = {
        **LLMBridge._ATTENTION_MAPPING,
        "self_attention.post_layernorm.weight": [_LAYER + "post_self_attn_layernorm.weight"],
    }
    _MLP_MAPPING: ClassVar = {
        "mlp.linear_fc1.layer_norm_weight": [_LAYER + "post_attention_layernorm.weight"],
        "mlp.linear_fc1.weight": [_LAYER + "mlp.gate_up_proj.weight"],
        "mlp.linear_fc2.weight": [_LAYER + "mlp.down_proj.weight"],
        "mlp.post_layernorm.weight": [_LAYER + "post_mlp_layernorm.weight"],
    }


class DeepseekV3(DeepseekV3Bridge):
    """mbridge's names. Its configuration is for an older Megatron-core; ours comes from
    architectures.py."""

    TransformerConfigClass = MLATransformerConfig


_OWN: dict[str, Any] = {"deepseek_v3": DeepseekV3, "glm4": Glm4, "qwen3_moe": Qwen3MoE}


def family_class(model_type: str) -> Any:
    """The mbridge class that knows this family's names."""
    return _OWN.get(model_type) or _MODEL_REGISTRY[model_type]
