"""What the model authors publish, by preset: the fields of config.json that decide the shape, and
the parameters of the safetensors.

`count`: parameters that the hub states for the bf16 checkpoint, or that an inspection of its
headers gave; None: none that could be trusted. `beyond`: how many of those are no weights of the
trained model (multi-token prediction layers, copies, tables)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Published:
    checkpoints: tuple[str, ...]  # the preset fits each of these
    config: dict[str, Any]
    count: int | None
    beyond: int = 0


def _qwen2(
    hidden: int, ffn: int, layers: int, heads: int, kv: int, vocab: int, *, tied: bool
) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
    }


def _qwen3(
    hidden: int, ffn: int, layers: int, heads: int, kv: int, *, tied: bool, theta: float = 1000000.0
) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-6,
        "rope_theta": theta,
        "attention_bias": False,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "use_sliding_window": False,
    }


def _qwen3_moe(
    hidden: int, ffn: int, moe: int, layers: int, heads: int, *, theta: float = 1000000.0
) -> dict[str, Any]:
    routed = {
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": moe,
        "norm_topk_prob": True,
    }
    dense = _qwen3(hidden, ffn, layers, heads, 4, tied=False, theta=theta)
    return {
        **dense,
        **routed,
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _llama(
    hidden: int,
    ffn: int,
    layers: int,
    heads: int,
    *,
    tied: bool = False,
    factor: float | None = None,
) -> dict[str, Any]:
    scaling = {
        "factor": factor,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    }
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "max_position_embeddings": 131072 if factor else 8192,
        "rope_scaling": {**scaling, "rope_type": "llama3"} if factor else None,
    }


def _glm4_moe(
    hidden: int,
    ffn: int,
    moe: int,
    layers: int,
    experts: int,
    dense: int,
    scaling: float,
    *,
    qk_norm: bool,
) -> dict[str, Any]:
    return {
        "model_type": "glm4_moe",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "moe_intermediate_size": moe,
        "num_hidden_layers": layers,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151552,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
        "use_qk_norm": qk_norm,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": dense,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": scaling,
        "num_nextn_predict_layers": 1,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
    }


def _deepseek(**own: Any) -> dict[str, Any]:
    return {
        "model_type": "deepseek_v3",
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "hidden_act": "silu",
        "norm_topk_prob": True,
        "moe_layer_freq": 1,
        **own,
    }


def _yarn(factor: float, fast: float, slow: float) -> dict[str, Any]:
    original = {"original_max_position_embeddings": 4096, "type": "yarn"}
    return {
        "beta_fast": fast,
        "beta_slow": slow,
        "factor": factor,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        **original,
    }


def _prediction_layer(c: dict[str, Any]) -> int:
    """GLM-4.5's: a decoder layer with experts, eh_proj, three norms, and embedding and head once
    more."""
    hidden, heads = c["hidden_size"], c["num_attention_heads"] * c["head_dim"]
    kv = c["num_key_value_heads"] * c["head_dim"]
    attention = (
        2 * hidden * heads
        + 2 * hidden * kv
        + heads
        + 2 * kv
        + (2 * c["head_dim"] if c["use_qk_norm"] else 0)
    )
    experts = (
        (c["n_routed_experts"] + c["n_shared_experts"]) * 3 * hidden * c["moe_intermediate_size"]
    )
    layer = attention + experts + c["n_routed_experts"] * (hidden + 1) + 2 * hidden
    return layer + 2 * hidden * hidden + 3 * hidden + 2 * c["vocab_size"] * hidden


_GLM4_9B = {
    "model_type": "glm4",
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 151552,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "pad_token_id": None,
}
_GLM45 = _glm4_moe(5120, 12288, 1536, 92, 160, 3, 2.5, qk_norm=True)
_GLM45_AIR = _glm4_moe(4096, 10944, 1408, 46, 128, 1, 1.0, qk_norm=False)
_V3 = _deepseek(
    hidden_size=7168,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    num_hidden_layers=61,
    num_attention_heads=128,
    num_key_value_heads=128,
    q_lora_rank=1536,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    n_group=8,
    topk_group=4,
    first_k_dense_replace=3,
    routed_scaling_factor=2.5,
    vocab_size=129280,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    rope_scaling=_yarn(40, 32, 1),
    max_position_embeddings=163840,
    num_nextn_predict_layers=1,
)
_K2 = _deepseek(
    hidden_size=7168,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    num_hidden_layers=61,
    num_attention_heads=64,
    num_key_value_heads=64,
    q_lora_rank=1536,
    n_routed_experts=384,
    n_shared_experts=1,
    num_experts_per_tok=8,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
    routed_scaling_factor=2.827,
    vocab_size=163840,
    rms_norm_eps=1e-6,
    rope_theta=50000.0,
    rope_scaling=_yarn(32.0, 1.0, 1.0),
    max_position_embeddings=131072,
    num_nextn_predict_layers=0,
)
_MOONLIGHT = _deepseek(
    hidden_size=2048,
    intermediate_size=11264,
    moe_intermediate_size=1408,
    num_hidden_layers=27,
    num_attention_heads=16,
    num_key_value_heads=16,
    q_lora_rank=None,
    n_routed_experts=64,
    n_shared_experts=2,
    num_experts_per_tok=6,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
    routed_scaling_factor=2.446,
    vocab_size=163840,
    rms_norm_eps=1e-5,
    rope_theta=50000.0,
    max_position_embeddings=8192,
    num_nextn_predict_layers=0,
)


def _instruct(size: str) -> tuple[str, ...]:
    return (f"Qwen/Qwen2.5-{size}", f"Qwen/Qwen2.5-{size}-Instruct")


PUBLISHED: dict[str, Published] = {
    "qwen2.5-0.5B": Published(
        checkpoints=_instruct("0.5B"),
        config=_qwen2(896, 4864, 24, 14, 2, 151936, tied=True),
        count=494032768,
    ),
    "qwen2.5-1.5B": Published(
        checkpoints=_instruct("1.5B"),
        config=_qwen2(1536, 8960, 28, 12, 2, 151936, tied=True),
        count=1543714304,
    ),
    "qwen2.5-3B": Published(
        checkpoints=_instruct("3B"),
        config=_qwen2(2048, 11008, 36, 16, 2, 151936, tied=True),
        count=3085938688,
    ),
    "qwen2.5-7B": Published(
        checkpoints=_instruct("7B"),
        config=_qwen2(3584, 18944, 28, 28, 4, 152064, tied=False),
        count=7615616512,
    ),
    "qwen2.5-14B": Published(
        checkpoints=_instruct("14B"),
        config=_qwen2(5120, 13824, 48, 40, 8, 152064, tied=False),
        count=14770033664,
    ),
    "qwen2.5-32B": Published(
        checkpoints=_instruct("32B"),
        config=_qwen2(5120, 27648, 64, 40, 8, 152064, tied=False),
        count=32763876352,
    ),
    "qwen2.5-72B": Published(
        checkpoints=_instruct("72B"),
        config=_qwen2(8192, 29568, 80, 64, 8, 152064, tied=False),
        count=72706203648,
    ),
    # The hub counts the tied output layer of the 0.6B and the 1.7B a second time (751632384 and
    # 2031739904 with it).
    "qwen3-0.6B": Published(
        checkpoints=("Qwen/Qwen3-0.6B",),
        config=_qwen3(1024, 3072, 28, 16, 8, tied=True),
        count=751632384,
        beyond=151936 * 1024,
    ),
    "qwen3-1.7B": Published(
        checkpoints=("Qwen/Qwen3-1.7B",),
        config=_qwen3(2048, 6144, 28, 16, 8, tied=True),
        count=2031739904,
        beyond=151936 * 2048,
    ),
    "qwen3-4B": Published(
        checkpoints=("Qwen/Qwen3-4B",),
        config=_qwen3(2560, 9728, 36, 32, 8, tied=True),
        count=4022468096,
    ),
    "qwen3-4B-2507": Published(
        checkpoints=("Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-4B-Thinking-2507"),
        config=_qwen3(2560, 9728, 36, 32, 8, tied=True, theta=5000000.0),
        count=4022468096,
    ),
    "qwen3-8B": Published(
        checkpoints=("Qwen/Qwen3-8B",),
        config=_qwen3(4096, 12288, 36, 32, 8, tied=False),
        count=8190735360,
    ),
    "qwen3-14B": Published(
        checkpoints=("Qwen/Qwen3-14B",),
        config=_qwen3(5120, 17408, 40, 40, 8, tied=False),
        count=14768307200,
    ),
    "qwen3-32B": Published(
        checkpoints=("Qwen/Qwen3-32B",),
        config=_qwen3(5120, 25600, 64, 64, 8, tied=False),
        count=32762123264,
    ),
    "qwen3-30B-A3B": Published(
        checkpoints=("Qwen/Qwen3-30B-A3B",),
        config=_qwen3_moe(2048, 6144, 768, 48, 32),
        count=30532122624,
    ),
    "qwen3-235B-A22B": Published(
        checkpoints=("Qwen/Qwen3-235B-A22B",),
        config=_qwen3_moe(4096, 12288, 1536, 94, 64),
        count=235093634560,
    ),
    "llama3-8B": Published(
        checkpoints=("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"),
        config=_llama(4096, 14336, 32, 32),
        count=8030261248,
    ),
    "llama3-70B": Published(
        checkpoints=("meta-llama/Meta-Llama-3-70B", "meta-llama/Meta-Llama-3-70B-Instruct"),
        config=_llama(8192, 28672, 80, 64),
        count=70553706496,
    ),
    "llama3.1-8B": Published(
        checkpoints=("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
        config=_llama(4096, 14336, 32, 32, factor=8.0),
        count=8030261248,
    ),
    "llama3.1-70B": Published(
        checkpoints=(
            "meta-llama/Llama-3.1-70B",
            "meta-llama/Llama-3.1-70B-Instruct",
            "meta-llama/Llama-3.3-70B-Instruct",
        ),
        config=_llama(8192, 28672, 80, 64, factor=8.0),
        count=70553706496,
    ),
    "llama3.2-1B": Published(
        checkpoints=("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"),
        config={**_llama(2048, 8192, 16, 32, tied=True, factor=32.0), "head_dim": 64},
        count=1235814400,
    ),
    "llama3.2-3B": Published(
        checkpoints=("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"),
        config={**_llama(3072, 8192, 28, 24, tied=True, factor=32.0), "head_dim": 128},
        count=3212749824,
    ),
    "glm4-9B": Published(
        checkpoints=("zai-org/GLM-4-9B-0414", "zai-org/GLM-Z1-9B-0414"),
        config=_GLM4_9B,
        count=9400279040,
    ),
    "glm4.5-355B-A32B": Published(
        checkpoints=("zai-org/GLM-4.5",),
        config=_GLM45,
        count=358337791296,
        beyond=_prediction_layer(_GLM45),
    ),
    "glm4.5-106B-A12B": Published(
        checkpoints=("zai-org/GLM-4.5-Air",),
        config=_GLM45_AIR,
        count=110468824832,
        beyond=_prediction_layer(_GLM45_AIR),
    ),
    # The README's 671B, counted from the headers without the prediction layer and without the fp8
    # scales.
    "deepseek-v3": Published(
        checkpoints=(
            "deepseek-ai/DeepSeek-V3",
            "deepseek-ai/DeepSeek-V3-0324",
            "deepseek-ai/DeepSeek-R1",
        ),
        config=_V3,
        count=671026419200,
    ),
    # From the headers, without fp8 scales and the rotary tables that the checkpoint carries.
    "kimi-k2": Published(
        checkpoints=("moonshotai/Kimi-K2-Base", "moonshotai/Kimi-K2-Instruct"),
        config=_K2,
        count=1026408232448,
    ),
    # 64 more a layer than weights: rotary tables in the checkpoint, as K2's headers show them, is
    # our reading; we have not seen these.
    "moonlight-16B-A3B": Published(
        checkpoints=("moonshotai/Moonlight-16B-A3B", "moonshotai/Moonlight-16B-A3B-Instruct"),
        config=_MOONLIGHT,
        count=15960111936,
        beyond=27 * 64,
    ),
}
