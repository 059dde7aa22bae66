"""The layers of a model: TransformerEngine's where it is, else Megatron's local ones with our own
attention and norm."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from torch import Tensor

from stages.learn.megatron.attention import RMSNorm, SdpaCoreAttention


def layer_spec(config: Any, model_type: str, *, use_te: bool, vp_stage: int | None) -> Any:
    """Megatron's TransformerBlockSubmodules of this pipeline stage."""
    spec = get_gpt_decoder_block_spec(config, use_te, normalization="RMSNorm", vp_stage=vp_stage)
    # layers of one kind share their spec
    kinds = {id(layer): layer for layer in spec.layer_specs}.values()
    if not use_te:
        spec.layer_norm = RMSNorm
        for layer in kinds:
            _make_local(layer.submodules, config)
    if model_type == "glm4":
        for layer in kinds:
            _sandwich(layer.submodules)
    return spec


def head_dims(config: Any) -> tuple[int, int]:
    """(Of queries and keys, of values), by Megatron's TransformerConfig."""
    if config.multi_latent_attention:
        return config.qk_head_dim + config.qk_pos_emb_head_dim, config.v_head_dim
    return config.kv_channels, config.kv_channels


def _make_local(parts: Any, config: Any) -> None:
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention = parts.self_attention.submodules
    attention.core_attention = SdpaCoreAttention
    if config.multi_latent_attention:
        parts.self_attention = dataclasses.replace(
            parts.self_attention, module=PackedLatentAttention
        )
        attention.q_layernorm = attention.kv_layernorm = RMSNorm
    elif config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm


class PackedLatentAttention(MLASelfAttention):
    """MLA over our packing: its rotary table is read at each token's own position, as PolicyModel
    does for other models."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rotary_pos_emb: Any = _AtPositions(self._modules.pop("rotary_pos_emb"))

    def get_query_key_value_tensors(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        position_ids: Tensor | None = None,
        packed_seq_params: Any = None,
        inference_context: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Tensors [t, 1, heads, dim] for SdpaCoreAttention, which alone needs to know of the
        packing."""
        self.rotary_pos_emb.packing = packed_seq_params
        return super().get_query_key_value_tensors(
            hidden_states, key_value_states, position_ids, None, inference_context, **kwargs
        )


class _AtPositions(torch.nn.Module):
    """Stands for one of Megatron's rotary embeddings: the rows of its table at the positions of
    `packing`."""

    def __init__(self, table: Any) -> None:
        super().__init__()
        self.table, self.packing = table, None

    def get_rotary_seq_len(self, *args: Any) -> int:
        length: int = (
            self.packing.max_seqlen_q if self.packing else self.table.get_rotary_seq_len(*args)
        )
        return length

    def forward(self, length: int, packed_seq: bool = False) -> Any:
        found = self.table(length, packed_seq=packed_seq)
        if self.packing is None:
            return found
        at = self.packing.positions
        return found[at] if isinstance(found, Tensor) else (found[0][at], *found[1:])


def _sandwich(parts: Any) -> None:
    """Adds GLM-4's second norm behind attention and behind the MLP, before the residual is added.

    Megatron-core has no field for it; the two modules' outputs are where it belongs."""
    parts.self_attention = dataclasses.replace(parts.self_attention, module=SandwichAttention)
    # A class and no ModuleSpec: Megatron would warn of an MLP that it does not know, for every
    # layer.
    parts.mlp = type("SandwichMLP", (SandwichMLP,), {"parts": parts.mlp.submodules})


class SandwichAttention(SelfAttention):
    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.post_layernorm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out, bias = super().forward(*args, **kwargs)
        return self.post_layernorm(out if bias is None else out + bias), None


class SandwichMLP(MLP):
    parts: Any

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(config, self.parts, **kwargs)
        self.post_layernorm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out, bias = super().forward(*args, **kwargs)
        return self.post_layernorm(out if bias is None else out + bias), None
