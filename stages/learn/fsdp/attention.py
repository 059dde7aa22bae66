"""The attention that Hugging Face models call, over packed samples: FlashAttention's varlen kernel
where there is one, else torch SDPA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.utils import is_flash_attn_2_available

from stages.learn.blocks import attend_blocks
from stages.learn.fsdp.packing import Packing

PACKED = "slipstream_packed"


def attention_of(device: torch.device) -> str:
    """The name under which transformers knows the attention for this device; ours is registered
    here."""
    AttentionInterface.register(PACKED, packed_attention)
    return "flash_attention_2" if device.type == "cuda" and is_flash_attn_2_available() else PACKED


def attention_arguments(name: str, packing: Packing) -> dict[str, Any]:
    """Keyword arguments of the model's forward that say how tokens are packed."""
    if name == PACKED:
        return {"packing": packing}
    ends, longest = packing.ends, packing.longest
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function. query: [1, heads, t, dim]; key, value: [1, kv_heads, t,
    dim]; returns [1, t, heads, dim]."""
    if packing is None:
        raise NotImplementedError(
            f"{type(module).__name__} does not hand the model's keyword arguments on to its"
            " attention"
        )
    if extra := [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]:
        raise NotImplementedError(
            f"{type(module).__name__} asks for {', '.join(extra)}, which torch's SDPA does not have"
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend_blocks(q, k, v, packing.blocks, scale=scale, window=sliding_window)[None], None
