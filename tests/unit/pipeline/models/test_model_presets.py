"""configs/models/: every preset through the real loader, against what the model authors publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.command_line.loader import parse_config
from pipeline.core.errors import ConfigError
from pipeline.wiring.foreign_flags import FAMILIES
from stages.learn.megatron.arguments import convert
from stages.learn.megatron.modelflags import checkpoint_says, layer_pattern, split_flags
from tests.conftest import ROOT
from tests.unit.model_configs import PUBLISHED

FOLDER = ROOT / "configs" / "models"
# What a preset may leave to the checkpoint: variants of one model differ in it, or it says again
# what another flag says.
LEFT_OPEN = {
    "max_position_embeddings",
    "use_rotary_position_embeddings",
    "num_moe_experts",
    "layernorm_epsilon",
}
SAID_BY = {
    "swiglu": {"gated_linear_unit", "activation_func"},
    "disable_bias_linear": {"add_bias_linear"},
    "num_experts": {"num_moe_experts"},
}


def preset_names() -> list[str]:
    return sorted(
        p.stem for p in FOLDER.glob("*.yaml") if isinstance(yaml.safe_load(p.read_text()), list)
    )


def flags_of(name: str) -> dict[str, Any]:
    config, _ = parse_config(["--config", str(FOLDER / f"{name}.yaml")], FAMILIES)
    assert config.run.name == name
    return dict(config.megatron)


def hf_config(name: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**PUBLISHED[name].config)


def test_every_preset_has_its_published_figures() -> None:
    assert preset_names() == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_to_the_unit(name: str) -> None:
    published = PUBLISHED[name]
    assert (
        published.count is None
        or num_parameters(flags_of(name)) == published.count - published.beyond
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_flags_agree_with_config_json_and_say_all_of_it(name: str) -> None:
    flags, hf = flags_of(name), hf_config(name)
    left = split_flags(hf, flags, name)
    assert not {k for k in left if not k.startswith("moe_")} - {
        "apply_rope_fusion",
        "attention_softmax_in_fp32",
        "kv_channels",
    }
    said = checkpoint_says(hf)
    stated = set(flags).union(*(SAID_BY.get(flag, set()) for flag in flags))
    silent = {
        n for n, value in said.items() if n not in stated and value not in (None, False)
    } - LEFT_OPEN
    silent -= {"group_query_attention", "rope_scaling_factor", "rotary_scaling_factor"}
    assert silent == (
        {"norm_epsilon"} if name in ("qwen2.5-14B", "qwen2.5-32B", "qwen2.5-72B") else set()
    )


@pytest.mark.parametrize(
    ("name", "flag", "value", "says"),
    [
        ("qwen3-4B", "rotary_base", "5000000", "1000000"),
        ("qwen3-4B", "untie_embeddings_and_output_weights", "true", "False"),
        ("qwen3-4B", "num_experts", "8", "None"),
        ("qwen3-4B", "swiglu", "false", "True"),
        ("llama3.1-8B", "use_rope_scaling", "false", "True"),
        ("qwen3-30B-A3B", "moe_layer_freq", "2", "[1, 1"),
        ("qwen3-30B-A3B", "moe_router_pre_softmax", "true", "False"),
        ("deepseek-v3", "q_lora_rank", "none", "1536"),
        ("deepseek-v3", "moe_router_num_groups", "1", "8"),
        ("glm4-9B", "post_mlp_layernorm", "false", "True"),
        ("glm4.5-106B-A12B", "qk_layernorm", "true", "False"),
    ],
)
def test_a_flag_against_the_checkpoint_is_refused_by_name(
    name: str, flag: str, value: str, says: str
) -> None:
    given = {**flags_of(name), flag: convert(flag, value), "norm_epsilon": 0.5}
    with pytest.raises(ConfigError) as caught:
        split_flags(hf_config(name), given, "FOLDER")
    message = str(caught.value)
    assert f"--{flag.replace('_', '-')} {convert(flag, value)}, but FOLDER has {says}" in message
    assert "--norm-epsilon 0.5, but FOLDER has " in message


def test_what_means_the_same_is_taken() -> None:
    kimi = {
        **flags_of("kimi-k2"),
        "moe_router_num_groups": 1,
        "moe_router_group_topk": 1,
        "kv_channels": 64,
    }
    assert "moe_router_num_groups" not in split_flags(hf_config("kimi-k2"), kimi, "")
    llama = {
        "group_query_attention": True,
        "rope_scaling_factor": 8.0,
        "use_rotary_position_embeddings": True,
        "rope_fusion": False,
    }
    assert split_flags(hf_config("llama3-8B"), llama, "") == {"apply_rope_fusion": False}
    assert (
        convert("moe_layer_freq", "[0]*1+[1]*2")
        == convert("moe_layer_freq", "([0]*1+2*[1])")
        == [0, 1, 1]
    )
    assert (
        layer_pattern("__import__('os')")
        is layer_pattern("[1]*99999999")
        is layer_pattern("2")
        is None
    )


def test_presets_compose_and_the_command_line_wins(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("- --lr 1e-5\n- --moe-aux-loss-coeff 0.01\n")
    model = str(FOLDER / "qwen3-30B-A3B.yaml")
    for words in (["--config", model, str(own)], ["--config", model, "--config", str(own)]):
        config, _ = parse_config([*words, "--tensor-model-parallel-size", "4"], FAMILIES)
        assert (
            config.megatron["num_experts"],
            config.megatron["moe_aux_loss_coeff"],
            config.run.name,
        ) == (128, 0.01, "own")
        assert config.megatron["tensor_model_parallel_size"] == 4


def num_parameters(f: dict[str, Any]) -> int:
    """Weights of the model that these flags describe, expert biases included."""
    hidden, layers, vocab = f["hidden_size"], f["num_layers"], f["vocab_size"]
    total = vocab * hidden * (2 if f["untie_embeddings_and_output_weights"] else 1) + hidden
    pattern = f.get("moe_layer_freq", 0)
    routed = [bool(pattern)] * layers if isinstance(pattern, int) else [bool(x) for x in pattern]
    norms = hidden * (4 if f.get("post_mlp_layernorm") else 2)
    for is_routed in routed:
        total += (_latent(f) if f.get("multi_latent_attention") else _attention(f)) + norms
        total += _experts(f) if is_routed else 3 * hidden * f["ffn_hidden_size"]
    return total


def _attention(f: dict[str, Any]) -> int:
    hidden, queries, keys = (
        f["hidden_size"],
        f["num_attention_heads"] * f["kv_channels"],
        f["num_query_groups"] * f["kv_channels"],
    )
    biases = queries + 2 * keys if f["add_qkv_bias"] else 0
    return (
        2 * hidden * queries
        + 2 * hidden * keys
        + biases
        + (2 * f["kv_channels"] if f["qk_layernorm"] else 0)
    )


def _latent(f: dict[str, Any]) -> int:
    hidden, heads, low, kv_low = (
        f["hidden_size"],
        f["num_attention_heads"],
        f["q_lora_rank"],
        f["kv_lora_rank"],
    )
    query = heads * (f["qk_head_dim"] + f["qk_pos_emb_head_dim"])
    total = hidden * query if low is None else hidden * low + low + low * query
    total += (
        hidden * (kv_low + f["qk_pos_emb_head_dim"])
        + kv_low
        + kv_low * heads * (f["qk_head_dim"] + f["v_head_dim"])
    )
    return int(total + heads * f["v_head_dim"] * hidden)


def _experts(f: dict[str, Any]) -> int:
    hidden, num = f["hidden_size"], f["num_experts"]
    bias = num if f.get("moe_router_enable_expert_bias") else 0
    shared = f.get("moe_shared_expert_intermediate_size", 0)
    return int(num * hidden + bias + 3 * hidden * (num * f["moe_ffn_hidden_size"] + shared))


def test_the_page_on_models_has_every_preset_and_figure() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    for name, published in PUBLISHED.items():
        family, dash, size = name.rpartition("-") if f"`{name}`" not in page else (name, "", "")
        assert (
            f"`{name}`" in page
            or (f"`{family}-" in page and f"`{dash}{size}`" in page)
            or f"`-{name.split('-', 1)[1]}`" in page
        ), name
        assert published.count is None or str(published.count - published.beyond) in page, name


@pytest.mark.slow
def test_transformers_counts_the_same() -> None:
    """The model that transformers makes of the published fields, without memory for it."""
    import torch
    from transformers import AutoModelForCausalLM

    for name in PUBLISHED:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(hf_config(name), dtype=torch.bfloat16)
        biases = sum(
            b.numel() for key, b in model.named_buffers() if key.endswith("e_score_correction_bias")
        )
        counted = sum(p.numel() for p in model.parameters()) + biases
        assert counted == num_parameters(flags_of(name)), name
