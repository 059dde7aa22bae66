"""Megatron-LM's words for a model's shape that are not fields of a configuration class, and what a
checkpoint says about each.

`--swiglu`, `--norm-epsilon`, `--vocab-size` and their like are arguments of Megatron's training
script (megatron/training/arguments.py), which the wheel does not have; slime's and everybody's
model scripts are written in them. Here they only restate the checkpoint: one that agrees is taken,
one that does not is refused. No torch is imported here."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from pipeline.core.errors import ConfigError
from stages.learn.megatron.architectures import rope_of, shape_of

# name -> (annotation, help)
MODEL_FLAGS: dict[str, tuple[str, str]] = {
    "disable_bias_linear": ("bool", "No biases in linear layers."),
    "group_query_attention": (
        "bool",
        "Fewer key and value heads than query heads; --num-query-groups says how many.",
    ),
    "max_position_embeddings": ("int", "Longest sequence that the positions were made for."),
    "norm_epsilon": ("float", "Epsilon of all norms."),
    "num_experts": ("int", "Experts in an MoE layer."),
    "position_embedding_type": ("Literal['rope']", "Position embedding; rope is the only one."),
    "post_mlp_layernorm": ("bool", "A second norm behind the MLP (GLM-4)."),
    "post_self_attn_layernorm": ("bool", "A second norm behind the attention (GLM-4)."),
    "rope_fusion": ("bool", "Fused rotary kernels; --no-rope-fusion turns them off."),
    "rope_scaling_factor": ("float", "Factor of Llama 3.1's rotary scaling."),
    "rotary_seq_len_interpolation_factor": ("float", "Linear interpolation of rotary positions."),
    "swiglu": ("bool", "Gated linear units with SiLU."),
    "untie_embeddings_and_output_weights": (
        "bool",
        "An output layer of its own, instead of the embedding's weights.",
    ),
    "use_rope_scaling": ("bool", "Llama 3.1's rotary scaling."),
    "use_rotary_position_embeddings": (
        "bool",
        "The older way to say --position-embedding-type rope.",
    ),
    "vocab_size": ("int", "Words of the vocabulary, without padding."),
}
# Other words for a field of TransformerConfig: name -> (field, the value that the flag's value
# means).
_RESTATED: dict[str, Any] = {
    "disable_bias_linear": ("add_bias_linear", lambda given: not given),
    "norm_epsilon": ("layernorm_epsilon", float),
    "num_experts": ("num_moe_experts", int),
    "swiglu": ("gated_linear_unit", bool),
}
# What only some checkpoints have: a flag for it is wrong with the others.
_ABSENT: dict[str, Any] = {
    "moe_ffn_hidden_size": None,
    "moe_layer_freq": None,
    "moe_router_enable_expert_bias": False,
    "moe_router_topk_scaling_factor": None,
    "moe_shared_expert_intermediate_size": None,
    "num_moe_experts": None,
    "rope_scaling_factor": 8.0,  # Megatron-LM's default: harmless without --use-rope-scaling
    "rotary_percent": 1.0,
    "rotary_scaling_factor": 1.0,
    "rotary_seq_len_interpolation_factor": None,
}
# 1 says the same as leaving them out
_NO_CHOICE = ("moe_router_num_groups", "moe_router_group_topk")


def checkpoint_says(hf: Any) -> dict[str, Any]:
    """The value of every flag that config.json decides. Raises CheckpointError as shape_of does."""
    rope = dict(rope_of(hf))
    rope.pop("rope_scaling", None)
    if factor := rope.pop("seq_len_interpolation_factor", None):
        rope["rotary_seq_len_interpolation_factor"] = factor
    said = {
        **_ABSENT,
        **shape_of(hf),
        **rope,
        "vocab_size": hf.vocab_size,
        "max_position_embeddings": hf.max_position_embeddings,
        "position_embedding_type": "rope",
        "use_rotary_position_embeddings": True,
        "use_rope_scaling": "rope_scaling_factor" in rope,
        "untie_embeddings_and_output_weights": not hf.tie_word_embeddings,
        "post_self_attn_layernorm": hf.model_type == "glm4",
        "post_mlp_layernorm": hf.model_type == "glm4",
    }
    if said["multi_latent_attention"]:
        # nothing reads it there, and model scripts put all sorts of numbers
        del said["kv_channels"]
    said["group_query_attention"] = said["num_query_groups"] < said["num_attention_heads"]
    for name in _NO_CHOICE:
        said.setdefault(name, None)
    for name, (field, meaning) in _RESTATED.items():
        said[name] = None if said[field] is None else meaning(said[field])
    return said


def split_flags(hf: Any, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Of the model flags that a user gave, those that the checkpoint leaves open, as
    TransformerConfig's fields.

    `given`: by name, converted. Raises ConfigError that lists every flag that contradicts the
    config.json in `where`."""
    said, fields, wrong = checkpoint_says(hf), {}, []
    for name, value in given.items():
        if name == "rope_fusion":
            fields["apply_rope_fusion"] = value
        elif name not in said:
            fields[name] = value
        elif not _same(name, value, said):
            wrong.append(f"--{name.replace('_', '-')} {value}, but {where} has {said[name]}")
    if wrong:
        raise ConfigError(
            f"{'; '.join(wrong)}: drop {'them' if len(wrong) > 1 else 'the flag'}, or give the"
            " checkpoint that was meant"
        )
    return fields


def _same(name: str, value: Any, said: Mapping[str, Any]) -> bool:
    has = said[name]
    if name in _NO_CHOICE and value == 1 and has is None:
        return True
    if name == "group_query_attention":
        return bool(value) or not has
    if name == "moe_layer_freq" and isinstance(value, int) and has is not None:
        value = [int(i % value == 0) for i in range(said["num_layers"])]
    if callable(value):  # an activation function, already resolved
        value = value.__name__
    return bool(value == has)


def layer_pattern(text: str) -> list[int] | None:
    """`([0]*3+[1]*58)`, as Megatron-LM writes --moe-layer-freq, as a list; None when it is
    something else."""
    try:
        found = _list_of(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError):
        return None
    return found


def _list_of(node: ast.expr) -> list[int]:
    if isinstance(node, ast.List):
        return [_number(item) for item in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _list_of(node.left) + _list_of(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        if isinstance(node.left, ast.List):
            return _list_of(node.left) * _number(node.right)
        return _number(node.left) * _list_of(node.right)
    raise ValueError("no list of layers")


def _number(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int and 0 <= node.value <= 10_000:
        return node.value
    raise ValueError("no number")
