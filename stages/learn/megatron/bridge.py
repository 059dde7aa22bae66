"""Between a Hugging Face folder and Megatron's model: shapes, names and layouts, by mbridge, for both layer specs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mbridge.core.bridge import _MODEL_REGISTRY
from mbridge.core.llm_bridge import LLMBridge
from megatron.core import parallel_state as mpu
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from torch import Tensor

from pipeline.errors import CheckpointError, ConfigError
from stages.learn.megatron.attention import RMSNorm, SdpaCoreAttention
from stages.learn.megatron.hf_check import check_hf_weights
from stages.learn.megatron.model import PolicyModel

MODEL_TYPES = ("qwen2", "qwen3", "llama")
# Fields that the checkpoint decides; a flag that says otherwise is a mistake.
_SHAPE = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels")
# Kernels of apex and TransformerEngine, and torch.compile'd fusions, which the local spec goes without.
_LOCAL = {
    "apply_rope_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "persist_layer_norm": False,
}


def have_transformer_engine() -> bool:
    return importlib.util.find_spec("transformer_engine") is not None


class _Bridge(LLMBridge):
    """What this project changes in mbridge's bridges; mixed in ahead of the family's class."""

    _DIRECT_MAPPING: dict[str, str]

    def __init__(self, hf_config: Any, dtype: torch.dtype, fields: Mapping[str, Any]) -> None:
        self._fields = dict(fields)
        self.use_te = have_transformer_engine() and torch.cuda.is_available()
        super().__init__(hf_config, dtype=dtype, make_vocab_size_divisible_by=mpu.get_tensor_model_parallel_world_size())

    def _build_base_config(self, *args: Any, **kwargs: Any) -> Any:
        self.extra_args: dict[str, Any] = {
            "attention_dropout": 0.0,  # the engine samples without it
            "sequence_parallel": False,
            "use_cpu_initialization": not torch.cuda.is_available(),
            "gradient_accumulation_fusion": importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None,
            **({} if self.use_te else _LOCAL),
            **self._fields,
        }
        return super()._build_base_config(*args, **kwargs)

    def _get_gptmodel_args(self) -> dict[str, Any]:
        hf = self.hf_config
        out = {"vocab_size": hf.vocab_size, "max_sequence_length": hf.max_position_embeddings, "position_embedding_type": "rope"}
        return {**out, **_rope_args(hf)}

    def _get_transformer_layer_spec(self, vp_stage: int | None = None) -> Any:
        spec = get_gpt_decoder_block_spec(self.config, self.use_te, normalization="RMSNorm", vp_stage=vp_stage)
        if not self.use_te:
            spec.layer_norm = RMSNorm
            for layer in spec.layer_specs:
                parts = layer.submodules
                parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
                attention = parts.self_attention.submodules
                attention.core_attention = SdpaCoreAttention
                if self.config.qk_layernorm:
                    attention.q_layernorm = attention.k_layernorm = RMSNorm
        return spec

    def _adjust_mapping_for_shared_weights(self) -> None:
        """Tied output weights, on this object only: mbridge writes into the class, which other models share."""
        if self.hf_config.tie_word_embeddings:
            self._DIRECT_MAPPING = {**self._DIRECT_MAPPING, "output_layer.weight": "model.embed_tokens.weight"}

    def _weight_name_mapping_mcore_to_hf(self, name: str) -> list[str]:
        """mbridge knows TransformerEngine's names, where a norm belongs to the linear layer behind it."""
        if ".input_layernorm." in name:
            name = name.replace(".input_layernorm.", ".self_attention.linear_qkv.layer_norm_")
        elif ".pre_mlp_layernorm." in name:
            name = name.replace(".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_")
        return super()._weight_name_mapping_mcore_to_hf(name)

    def names(self, model: torch.nn.Module) -> dict[str, str]:
        """A chunk's own name of each weight -> the name that all ranks agree on."""
        agreed = self._weight_name_mapping_mcore_local_to_global(model)
        return {name: agreed[name] for name, _ in model.named_parameters()}

    def hf_names(self, agreed: str) -> list[str]:
        """What the weight of this agreed name is called in a Hugging Face folder; several are fused in Megatron."""
        return list(self._weight_name_mapping_mcore_to_hf(agreed))

    def to_megatron(self, agreed: str, tensors: list[Tensor]) -> Tensor:
        """Whole Hugging Face tensors, in the order of `hf_names`, as one whole tensor in Megatron's layout."""
        whole: Tensor = self._weight_to_mcore_format(agreed, tensors)
        return whole

    def to_hf(self, agreed: str, whole: Tensor) -> list[tuple[str, Tensor]]:
        """The inverse of `to_megatron`, with the names."""
        return list(zip(*self._weight_to_hf_format(agreed, whole), strict=True))

    def build(self) -> list[PolicyModel]:
        """This rank's model chunks (one, or one a virtual pipeline stage), weights not yet loaded."""
        size = self.config.virtual_pipeline_model_parallel_size
        models = []
        for stage in range(size) if size else (None,):
            first = mpu.is_pipeline_first_stage(ignore_virtual=stage is None, vp_stage=stage)
            last = mpu.is_pipeline_last_stage(ignore_virtual=stage is None, vp_stage=stage)
            models.append(self._chunk(first, last, stage))
        return models

    def _chunk(self, first: bool, last: bool, stage: int | None) -> PolicyModel:
        args = self._get_gptmodel_args()
        self.vocab_size, multiple = args["vocab_size"], self.make_vocab_size_divisible_by
        self.padded_vocab_size = args["vocab_size"] = -(-self.vocab_size // multiple) * multiple
        model = PolicyModel(
            config=self.config,
            transformer_layer_spec=self._get_transformer_layer_spec(stage),
            pre_process=first,
            post_process=last,
            share_embeddings_and_output_weights=self.hf_config.tie_word_embeddings,
            vp_stage=stage,
            **args,
        )
        model.num_words = self.vocab_size
        if last and self.config.sequence_parallel:  # PolicyModel gathers the sequence, and its backward sums over the ranks
            model.output_layer.sequence_parallel, model.output_layer.disable_grad_reduce = False, True
        return model

    def hf_weights(self, models: Sequence[torch.nn.Module]) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, whole tensor) of every weight, gathered over tensor and pipeline ranks.

        Every rank of the model-parallel group must iterate to the end, and every one gets the tensors. They may share memory
        with the model: copy before the next step.
        """
        own: dict[str, tuple[Tensor, int | None]] = {}
        for model in models:
            names = self._weight_name_mapping_mcore_local_to_global(model)
            for name, p in model.named_parameters():
                split = getattr(p, "tensor_model_parallel", False)
                own[names[name]] = (p.detach(), p.partition_dim if split else None)
        seen: set[str] = set()
        for name, tensor, dim in _over_pipeline(own):
            whole = tensor
            if dim is not None:
                tensor.tensor_model_parallel, tensor.partition_dim = True, dim  # what mbridge looks at
                whole = self._weight_merge_across_tp(name, _over_tensor_ranks(tensor), tensor)
            for hf_name, weight in zip(*self._weight_to_hf_format(name, whole), strict=True):
                if hf_name not in seen:  # tied embeddings live on the first and the last stage
                    seen.add(hf_name)
                    yield hf_name, weight


def _over_pipeline(own: dict[str, tuple[Tensor, int | None]]) -> Iterator[tuple[str, Tensor, int | None]]:
    """(name, this TP rank's tensor, the dimension split over TP or None) of all pipeline stages, in their order."""
    if mpu.get_pipeline_model_parallel_world_size() == 1:
        for name, (tensor, dim) in own.items():
            yield name, tensor, dim
        return
    group = mpu.get_pipeline_model_parallel_group()
    stages: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(stages, [(n, tuple(t.shape), t.dtype, dim) for n, (t, dim) in own.items()], group=group)
    device = next(iter(own.values()))[0].device
    for stage, entries in enumerate(stages):
        mine = stage == mpu.get_pipeline_model_parallel_rank()
        for name, shape, dtype, dim in entries:
            tensor = own[name][0] if mine else torch.empty(shape, dtype=dtype, device=device)
            dist.broadcast(tensor, src=dist.get_global_rank(group, stage), group=group)
            yield name, tensor, dim


def _over_tensor_ranks(tensor: Tensor) -> list[Tensor]:
    size = mpu.get_tensor_model_parallel_world_size()
    if size == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(size)]
    dist.all_gather(parts, tensor.contiguous(), group=mpu.get_tensor_model_parallel_group())
    return parts


def _rope_args(hf: Any) -> dict[str, Any]:
    """GPTModel's rotary arguments from config.json (transformers 5 keeps them in rope_parameters)."""
    rope = dict(getattr(hf, "rope_parameters", None) or getattr(hf, "rope_scaling", None) or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", getattr(hf, "rope_theta", None))
    if theta is None:
        raise CheckpointError(f"config.json of {hf.model_type} has no rope_theta")
    out: dict[str, Any] = {"rotary_base": theta}
    if kind == "linear":
        return {**out, "seq_len_interpolation_factor": rope["factor"]}
    if kind == "llama3":
        fixed = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        if wrong := {k: rope.get(k) for k, v in fixed.items() if rope.get(k) != v}:
            raise CheckpointError(f"rope_type llama3 with {wrong}: Megatron-core has these fixed at {fixed}")
        return {**out, "rope_scaling": True, "rope_scaling_factor": rope["factor"]}
    if kind != "default":
        raise CheckpointError(f"rope_type {kind!r} is not supported: expected default, linear or llama3")
    return out


def _check_supported(hf: Any, path: Path, fields: Mapping[str, Any]) -> None:
    if hf.model_type not in MODEL_TYPES:
        raise CheckpointError(f"{path}: model_type {hf.model_type!r} is not supported; expected one of {', '.join(MODEL_TYPES)}")
    if hf.model_type == "llama" and (hf.attention_bias or hf.mlp_bias):
        raise CheckpointError(f"{path}: a llama with attention_bias or mlp_bias is not supported")
    if getattr(hf, "use_sliding_window", False):
        raise CheckpointError(f"{path}: use_sliding_window is not supported")
    heads = {"num_attention_heads": hf.num_attention_heads, "num_query_groups": hf.num_key_value_heads, "kv_channels": hf.head_dim}
    shape = {"num_layers": hf.num_hidden_layers, "hidden_size": hf.hidden_size, "ffn_hidden_size": hf.intermediate_size, **heads}
    for name in _SHAPE:
        if name in fields and fields[name] != shape[name]:
            raise ConfigError(f"--{name.replace('_', '-')} {fields[name]}, but {path} has {shape[name]}: drop the flag")


def make_bridge(path: Path, dtype: torch.dtype, fields: Mapping[str, Any]) -> Any:
    """The bridge for the Hugging Face folder `path`; `fields`: TransformerConfig fields that go over the checkpoint's.

    Model-parallel state must be initialised. Raises CheckpointError for a folder or family that cannot be used.
    """
    from transformers import AutoConfig

    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: not a Hugging Face model folder (no config.json)")
    try:
        hf = AutoConfig.from_pretrained(path)
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError(f"{path}/config.json: {error}") from error
    if getattr(hf, "head_dim", None) is None:
        hf.head_dim = hf.hidden_size // hf.num_attention_heads
    _check_supported(hf, path, fields)
    family = _MODEL_REGISTRY[hf.model_type]
    return type(f"Policy{family.__name__}", (_Bridge, family), {})(hf, dtype, fields)


def load_hf_weights(bridge: Any, models: Sequence[torch.nn.Module], path: Path) -> None:
    """Fill `models` from the safetensors under `path`. Raises CheckpointError when a weight is missing or of another shape."""
    check_hf_weights(bridge, models, path)
    try:
        bridge.load_weights(list(models), str(path))
    except (ValueError, KeyError, AssertionError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{path}: the safetensors do not fit config.json: {error}") from error
