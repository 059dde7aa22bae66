"""What a sample costs: floating-point operations of a forward pass, from the shape in a Hugging
Face config.json. Pure.

Formula: a matrix product of a token with a [a, b] weight is 2ab operations; causal attention looks
at n(n + 1)/2 pairs of n tokens and does 2 * heads * (query-key width + value width) operations for
each. So a sample of n tokens costs `linear * n + attention * pairs`, and the output layer `head`
for every token whose logits are made. A backward pass is twice a forward pass. Norms, softmax and
the embedding's look-up are left out. Sources: Kaplan et al. 2020, arXiv:2001.08361, table 1;
Hoffmann et al. 2022, arXiv:2203.15556, appendix F; Narayanan et al. 2021, arXiv:2104.04473, section
5.1 (whose attention term is not halved for the causal mask; Megatron-LM's
num_floating_point_operations halves it, as done here)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.types import TrainSample

TRAINING_PASSES = 3  # forward, and a backward pass of twice that

# Dense bfloat16 peak of one device in 1e12 operations a second, by a word in its name: NVIDIA's
# data sheets, without sparsity.
PEAK_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "B100": 1800.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "GH200": 989.4,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10": 125.0,
    "A30": 165.0,
}


def peak_tflops(device_name: str) -> float | None:
    """None for a device that is not in the table.

    The longest word that fits wins (H200 is no H20, GH200 no H200).
    """
    fits = [word for word in PEAK_TFLOPS if word in device_name]
    return PEAK_TFLOPS[max(fits, key=len)] if fits else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """How many operations a forward pass takes. The default counts tokens instead."""

    linear: float = 1.0  # for each token
    attention: float = 0.0  # for each pair of a token and one that it looks at
    head: float = 0.0  # for each trained token
    # samples with the same `family` in one micro-batch are given their prompt once
    shares_prompts: bool = False

    def of(self, sample: TrainSample) -> float:
        """The cost of one sample by itself (its last token, which is not an input, is counted as
        one)."""
        trained = int(np.count_nonzero(sample.loss_mask)) if self.head else 0
        return self._of_tokens(sample.num_tokens) + self.head * trained

    def of_micro_batch(self, samples: Sequence[TrainSample]) -> float:
        """The cost of samples that are packed together."""
        total = sum(map(self.of, samples))
        return total - self.saved(samples) if self.shares_prompts else total

    def saved(self, samples: Sequence[TrainSample]) -> float:
        """How much shared prompts save in one micro-batch."""
        sizes = Counter(s.family for s in samples)
        return sum((count - 1) * self._of_tokens(length) for (_, length), count in sizes.items())

    def _of_tokens(self, n: int) -> float:
        return self.linear * n + self.attention * _pairs(n)


TOKENS = Cost()


def cost_of_model(shape: Mapping[str, Any], *, shares_prompts: bool = False) -> Cost:
    """The cost from the keys of a config.json (a language model's, or its text_config). Unknown
    keys count as absent."""
    shape = {**shape, **(shape.get("text_config") or {})}
    hidden, layers = _number(shape, "hidden_size"), int(_number(shape, "num_hidden_layers"))
    attention_weights, pair = _attention(shape, hidden)
    mlps = sum(_mlp(shape, hidden, layer) for layer in range(layers))
    return Cost(
        linear=2.0 * (layers * attention_weights + mlps),
        attention=layers * pair,
        head=2.0 * hidden * _number(shape, "vocab_size"),
        shares_prompts=shares_prompts,
    )


def read_cost(folder: Path, *, shares_prompts: bool = False) -> Cost:
    """The cost of the model in a Hugging Face folder; counts tokens where its config.json cannot be
    read or has no sizes."""
    try:
        return cost_of_model(
            json.loads((folder / "config.json").read_text(encoding="utf-8")),
            shares_prompts=shares_prompts,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Cost(shares_prompts=shares_prompts)


def _attention(shape: Mapping[str, Any], hidden: float) -> tuple[float, float]:
    """(weights, operations for a pair of tokens) of one layer's attention."""
    heads = _number(shape, "num_attention_heads")
    # multi-latent attention, DeepSeek-V2, arXiv:2405.04434, section 2.1
    if shape.get("kv_lora_rank"):
        nope, rope, value = (
            _number(shape, k) for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        )
        low_q, low_kv = shape.get("q_lora_rank"), _number(shape, "kv_lora_rank")
        queries = (
            hidden * low_q + low_q * heads * (nope + rope)
            if low_q
            else hidden * heads * (nope + rope)
        )
        keys = hidden * (low_kv + rope) + low_kv * heads * (nope + value)
        return queries + keys + heads * value * hidden, 2.0 * heads * (nope + rope + value)
    width = float(shape.get("head_dim") or hidden / heads)
    kv_heads = float(shape.get("num_key_value_heads") or heads)
    return 2 * hidden * width * (heads + kv_heads), 4.0 * heads * width


def _mlp(shape: Mapping[str, Any], hidden: float, layer: int) -> float:
    """The weights that one token meets in this layer's (gated) MLP. Of experts these are the ones
    that the token is sent to, and the router."""
    experts = next(
        (
            shape[k]
            for k in ("num_experts", "n_routed_experts", "num_local_experts")
            if shape.get(k)
        ),
        0,
    )
    dense_first, step = (
        int(shape.get("first_k_dense_replace") or 0),
        int(shape.get("decoder_sparse_step") or 1),
    )
    dense = (
        not experts
        or layer < dense_first
        or (layer + 1) % step
        or layer in (shape.get("mlp_only_layers") or ())
    )
    if dense:
        return 3 * hidden * _number(shape, "intermediate_size")
    inner = float(shape.get("moe_intermediate_size") or _number(shape, "intermediate_size"))
    shared = float(
        shape.get("shared_expert_intermediate_size")
        or inner * int(shape.get("n_shared_experts") or 0)
    )
    return 3 * hidden * (
        inner * int(shape.get("num_experts_per_tok") or 1) + shared
    ) + hidden * int(experts)


def _number(shape: Mapping[str, Any], key: str) -> float:
    return float(shape[key])


def _pairs(num_tokens: int) -> float:
    return num_tokens * (num_tokens + 1) / 2
