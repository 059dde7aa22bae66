"""One tiny random checkpoint of every architecture, and of variants within one; configs as
transformers names the keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.integration.learn.learner_cases import VOCAB

_BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
_HEADS = {**_BASE, "head_dim": 32}
_BIAS_BALANCED = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
}
_LATENT = {
    **_BASE,
    **_BIAS_BALANCED,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    # Not in transformers' class; SGLang asks for them, and published configs have them.
    "moe_layer_freq": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "v_head_dim": 24,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
}
_ROUTED = {**_HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

# name -> (model_type, config)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", _BASE),
    "qwen3": ("qwen3", _HEADS),
    "llama": (
        "llama",
        {**_BASE, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ),
    "glm4": (
        "glm4",
        {**_HEADS, "attention_bias": True, "rms_norm_eps": 1e-5, "pad_token_id": None},
    ),
    "qwen3_moe": ("qwen3_moe", {**_ROUTED, "norm_topk_prob": True}),
    "glm4_moe": (
        "glm4_moe",
        {**_HEADS, **_BIAS_BALANCED, "attention_bias": True, "use_qk_norm": True},
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **_LATENT,
            "q_lora_rank": 24,
            "n_group": 4,
            "topk_group": 1,
            "rope_parameters": {**_YARN, "rope_theta": 10000.0},
        },
    ),
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe-dense-first": (
        "qwen3_moe",
        {**_ROUTED, "norm_topk_prob": False, "mlp_only_layers": [0]},
    ),
    "glm4_moe-air": (
        "glm4_moe",
        {**_HEADS, **_BIAS_BALANCED, "attention_bias": True, "use_qk_norm": False},
    ),
    # Moonlight: no low-rank query, one group of experts, no yarn, two shared experts.
    "deepseek_v3-moonlight": (
        "deepseek_v3",
        {**_LATENT, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "n_shared_experts": 2},
    ),
}


def make_family(name: str, path: Path, seed: int = 0) -> Path:
    """A checkpoint whose norms, biases and routing all matter, saved as transformers saves it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, config = {**FAMILIES, **VARIANTS}[name]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **config), dtype=torch.float32
    )
    with torch.no_grad():
        for key, p in [*model.named_parameters(), *model.named_buffers()]:
            if key.endswith("_bias") or key.endswith(".bias"):
                p.copy_(0.1 * torch.randn_like(p))
            elif "norm" in key:
                p.mul_(1 + 0.3 * torch.randn_like(p))
            elif key.endswith("weight") or "proj" in key:
                p.mul_(4.0)
    model.save_pretrained(path)
    (path / "tokenizer_config.json").write_text("{}")
    return path
