"""The layers of a model: TransformerEngine's where it is, else Megatron's local ones with our own attention and norm."""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

from stages.learn.megatron.attention import RMSNorm, SdpaCoreAttention


def layer_spec(config: Any, *, use_te: bool, vp_stage: int | None) -> Any:
    """Megatron's TransformerBlockSubmodules of this pipeline stage."""
    spec = get_gpt_decoder_block_spec(config, use_te, normalization="RMSNorm", vp_stage=vp_stage)
    if not use_te:
        spec.layer_norm = RMSNorm
        for layer in spec.layer_specs:
            parts = layer.submodules
            parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
            attention = parts.self_attention.submodules
            attention.core_attention = SdpaCoreAttention
            if config.qk_layernorm:
                attention.q_layernorm = attention.k_layernorm = RMSNorm
    return spec
