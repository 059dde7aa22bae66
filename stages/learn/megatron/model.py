"""The policy: Megatron-core's GPTModel, with logits only where they are asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron.core import parallel_state as mpu
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor


def as_policy(model: GPTModel) -> PolicyModel:
    """`model` itself, which from now on makes logits as a PolicyModel does; what its own class
    overrides stays."""
    if not isinstance(model, PolicyModel):
        kind = type(model)
        model.__class__ = (
            PolicyModel
            if kind is GPTModel
            else type(f"Policy{kind.__name__}", (kind, PolicyModel), {})
        )
    return model


class PolicyModel(GPTModel):
    """GPTModel that makes logits only where they are asked for, and takes packed sequences under
    the local spec."""

    num_words: int = 0  # vocabulary without padding; set after construction

    def _preprocess(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        *args: Any,
        packed_seq_params: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The rotary table indexed by position: one lookup for the whole pack instead of a slice a
        sequence and layer."""
        local = packed_seq_params is not None and packed_seq_params.qkv_format != "thd"
        # Named thd here, Megatron makes the table of whole sequences under context parallelism too.
        asked = (
            dataclasses.replace(packed_seq_params, qkv_format="thd") if local else packed_seq_params
        )
        out = super()._preprocess(input_ids, position_ids, *args, packed_seq_params=asked, **kwargs)
        if not local or out[1] is None:  # latent attention has its own
            return out
        return (out[0], out[1][position_ids[0]], *out[2:])

    def _postprocess(
        self, hidden_states: Tensor, *args: Any, loss_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """`loss_mask` carries the rows [N] whose logits are wanted; returns logits [1, N, words of
        this TP rank]."""
        if not self.post_process:
            return hidden_states
        if self.config.sequence_parallel:
            group = self.pg_collection.tp
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=True, group=group
            )
        if loss_mask is not None:
            hidden_states = hidden_states.index_select(0, loss_mask)
        weight = (
            self.shared_embedding_or_output_weight()
            if self.share_embeddings_and_output_weights
            else None
        )
        logits, _ = self.output_layer(hidden_states, weight=weight)
        shard = logits.shape[-1]
        words = max(0, min(shard, self.num_words - mpu.get_tensor_model_parallel_rank() * shard))
        logits = logits.transpose(0, 1)
        # a slice costs the backward pass a copy
        return logits if words == shard else logits[..., :words]
