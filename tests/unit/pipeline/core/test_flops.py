"""The cost of a sample, against torch's own count of what a transformers model does, and against
published sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.core.flops import TOKENS, Cost, cost_of_model, peak_tflops, read_cost
from pipeline.core.types import TrainSample

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {**SMALL, "model_type": "qwen3", "head_dim": 16},
    "llama": {**SMALL, "model_type": "llama"},
}


def sample(prompt: int, response: int, group: int = 0) -> TrainSample:
    return TrainSample(
        index=0,
        group_index=group,
        tokens=np.full(prompt + response, group),
        response_length=response,
        loss_mask=np.ones(response, np.uint8),
        rollout_log_probs=np.zeros(response, np.float32),
        advantages=np.zeros(response, np.float32),
        reward=0.0,
        staleness=0,
    )


@pytest.mark.parametrize("kind", SHAPES)
def test_against_torchs_count(kind: str) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**SHAPES[kind]), attn_implementation="eager"
    )
    cost, n = cost_of_model(SHAPES[kind]), 40
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, n, dtype=torch.int64))
    # torch counts all n^2 pairs, we the n(n + 1)/2 that a causal mask leaves
    assert counter.get_total_flops() == pytest.approx(
        cost.linear * n + cost.attention * n * n + cost.head * n, rel=2e-3
    )


@pytest.mark.parametrize(
    ("shape", "active_weights"),
    [
        # published counts of the weights that a token meets, without embedding and output layer
        (
            {
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "num_hidden_layers": 48,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
                "head_dim": 128,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "moe_intermediate_size": 768,
                "decoder_sparse_step": 1,
                # Qwen3-30B-A3B
                "mlp_only_layers": [],
                "vocab_size": 151936,
            },
            3.35e9 - 2 * 2048 * 151936,
        ),
        (
            {
                "hidden_size": 7168,
                "intermediate_size": 18432,
                "num_hidden_layers": 61,
                "num_attention_heads": 128,
                "num_key_value_heads": 128,
                "q_lora_rank": 1536,
                "kv_lora_rank": 512,
                "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64,
                "v_head_dim": 128,
                "n_routed_experts": 256,
                "num_experts_per_tok": 8,
                "n_shared_experts": 1,
                "moe_intermediate_size": 2048,
                # DeepSeek-V3
                "first_k_dense_replace": 3,
                "vocab_size": 129280,
            },
            37.5e9 - 2 * 7168 * 129280,
        ),
        (
            {
                "hidden_size": 8192,
                "intermediate_size": 28672,
                "num_hidden_layers": 80,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "vocab_size": 128256,
            },
            70.55e9 - 2 * 8192 * 128256,
        ),  # Llama 3 70B
    ],
    ids=["qwen3-30b-a3b", "deepseek-v3", "llama3-70b"],
)
def test_against_published_active_weights(shape: dict[str, Any], active_weights: float) -> None:
    assert cost_of_model(shape).linear / 2 == pytest.approx(active_weights, rel=0.01)


def test_a_shared_prompt_is_paid_once() -> None:
    cost = Cost(linear=2.0, attention=0.5, head=3.0, shares_prompts=True)
    a, b, other = sample(10, 4), sample(10, 6), sample(10, 4, group=1)
    assert cost.of(a) == 2.0 * 14 + 0.5 * 14 * 15 / 2 + 3.0 * 4
    assert cost.of_micro_batch([a, b]) == cost.of(a) + cost.of(b) - (2.0 * 10 + 0.5 * 10 * 11 / 2)
    assert cost.of_micro_batch([a, other]) == cost.of(a) + cost.of(other)
    assert TOKENS.of_micro_batch([a, b]) == 30


def test_a_folder_that_says_nothing_counts_tokens(tmp_path: Any) -> None:
    assert read_cost(tmp_path) == TOKENS
    (tmp_path / "config.json").write_text('{"model_type": "odd"}')
    assert read_cost(tmp_path, shares_prompts=True) == Cost(shares_prompts=True)


def test_devices_by_name() -> None:
    assert peak_tflops("NVIDIA H200") == 989.4 and peak_tflops("NVIDIA H20") == 148.0
    assert (
        peak_tflops("NVIDIA H100 PCIe") == 756.0 and peak_tflops("NVIDIA A100-SXM4-80GB") == 312.0
    )
    assert peak_tflops("Radeon") is None
