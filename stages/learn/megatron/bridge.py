"""Between a Hugging Face folder and Megatron's model: configuration, layers and names, with
mbridge, for both layer specs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mbridge.core.llm_bridge import LLMBridge
from megatron.core import parallel_state as mpu
from torch import Tensor

from pipeline.core.devices import has_gpu
from pipeline.core.errors import CheckpointError, ConfigError
from stages.learn.megatron.architectures import HABITS, rope_of, shape_of
from stages.learn.megatron.fusions import default_fusions, forced_fusions
from stages.learn.megatron.hf_config import read_hf_config
from stages.learn.megatron.low_precision import check_low_precision
from stages.learn.megatron.mappings import family_class
from stages.learn.megatron.model import PolicyModel, as_policy
from stages.learn.megatron.modelflags import split_flags
from stages.learn.megatron.names import agreed_names
from stages.learn.megatron.spec import layer_spec
from stages.learn.megatron.weights import gather_hf_weights, load_hf_weights
from stages.learn.megatron.without_te import uses_transformer_engine

__all__ = ["load_hf_weights", "make_bridge"]

# (make the usual one, pre_process=, post_process=, vp_stage=) -> a GPTModel
Chunk = Callable[..., Any]


class _Bridge(LLMBridge):
    """What this project changes in mbridge's bridges; mixed in ahead of the family's class."""

    _DIRECT_MAPPING: dict[str, str]

    def __init__(self, hf_config: Any, dtype: torch.dtype, fields: Mapping[str, Any]) -> None:
        self._fields = dict(fields)
        self.use_te = uses_transformer_engine()
        super().__init__(
            hf_config,
            dtype=dtype,
            make_vocab_size_divisible_by=mpu.get_tensor_model_parallel_world_size(),
        )

    def _build_config(self) -> Any:
        shape = shape_of(self.hf_config)
        shape["activation_func"] = getattr(torch.nn.functional, shape["activation_func"])
        check_low_precision(self._fields, use_te=self.use_te)
        given = {
            **(HABITS if shape.get("num_moe_experts") else {}),
            **default_fusions(shape, use_te=self.use_te),
            **self._fields,
            **shape,
            **forced_fusions(self._fields, shape, use_te=self.use_te),
        }
        self.extra_args: dict[str, Any] = {
            "attention_dropout": 0.0,  # the engine samples without it
            # Megatron trains experts under tensor parallelism only so.
            "sequence_parallel": (
                "num_moe_experts" in shape and mpu.get_tensor_model_parallel_world_size() > 1
            ),
            "transformer_impl": "transformer_engine" if self.use_te else "local",
            "use_cpu_initialization": not has_gpu(),
            **given,
        }
        self._check_layout(shape)
        if unknown := sorted(
            set(self._fields) - set(inspect.signature(self.TransformerConfigClass).parameters)
        ):
            flags = ", ".join("--" + name.replace("_", "-") for name in unknown)
            raise ConfigError(
                f"{flags}: only for multi-latent attention, which {self.hf_config.model_type} has"
                " not; drop the flag"
            )
        return self._build_base_config()

    def _check_layout(self, shape: Mapping[str, Any]) -> None:
        if (
            shape.get("num_moe_experts")
            and mpu.get_tensor_model_parallel_world_size() > 1
            and not self.extra_args["sequence_parallel"]
        ):
            raise ConfigError(
                "--sequence-parallel false: experts under --tensor-model-parallel-size > 1 need it;"
                " drop the flag"
            )
        if (
            shape["multi_latent_attention"]
            and not self.use_te
            and mpu.get_context_parallel_world_size() > 1
        ):
            raise ConfigError(
                "--context-parallel-size > 1: multi-latent attention needs TransformerEngine for"
                " it; drop the flag"
            )

    def _get_gptmodel_args(self) -> dict[str, Any]:
        hf = self.hf_config
        out = {
            "vocab_size": hf.vocab_size,
            "max_sequence_length": hf.max_position_embeddings,
            "position_embedding_type": "rope",
        }
        return {**out, **rope_of(hf)}

    def _adjust_mapping_for_shared_weights(self) -> None:
        """Tied output weights, on this object only: mbridge writes into the class, which other
        models share."""
        if self.hf_config.tie_word_embeddings:
            self._DIRECT_MAPPING = {
                **self._DIRECT_MAPPING,
                "output_layer.weight": "model.embed_tokens.weight",
            }

    def names(self, model: torch.nn.Module) -> dict[str, str]:
        """A chunk's own name of each weight -> the name that all ranks agree on."""
        return agreed_names(model, self.config)

    def hf_names(self, agreed: str) -> list[str]:
        """What the weight of this agreed name is called in a Hugging Face folder; several are fused
        in Megatron."""
        try:
            return list(self._weight_name_mapping_mcore_to_hf(agreed))
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.hf_config.model_type}: Megatron's {agreed} has no Hugging Face name"
            ) from error

    def to_megatron(self, agreed: str, tensors: list[Tensor]) -> Tensor:
        """Whole Hugging Face tensors, in the order of `hf_names`, as one whole tensor in Megatron's
        layout."""
        whole: Tensor = self._weight_to_mcore_format(agreed, tensors)
        return whole

    def to_hf(self, agreed: str, whole: Tensor) -> list[tuple[str, Tensor]]:
        """The inverse of `to_megatron`: (name, tensor) pairs."""
        return list(zip(*self._weight_to_hf_format(agreed, whole), strict=True))

    def build(self, chunk: Chunk | None = None) -> list[PolicyModel]:
        """This rank's model chunks (one, or one a virtual pipeline stage), weights not yet
        loaded. `chunk` may make them otherwise."""
        size = self.config.virtual_pipeline_model_parallel_size
        models = []
        for stage in range(size) if size else (None,):
            first = mpu.is_pipeline_first_stage(ignore_virtual=stage is None, vp_stage=stage)
            last = mpu.is_pipeline_last_stage(ignore_virtual=stage is None, vp_stage=stage)
            models.append(self._chunk(first, last, stage, chunk))
        return models

    def _chunk(
        self, first: bool, last: bool, stage: int | None, chunk: Chunk | None
    ) -> PolicyModel:
        args = self._get_gptmodel_args()
        self.vocab_size, multiple = args["vocab_size"], self.make_vocab_size_divisible_by
        self.padded_vocab_size = args["vocab_size"] = -(-self.vocab_size // multiple) * multiple
        place = {"pre_process": first, "post_process": last, "vp_stage": stage}
        given = {
            "config": self.config,
            "transformer_layer_spec": layer_spec(
                self.config, self.hf_config.model_type, use_te=self.use_te, vp_stage=stage
            ),
            "share_embeddings_and_output_weights": self.hf_config.tie_word_embeddings,
            **place,
            **args,
        }

        def make(**changed: Any) -> PolicyModel:
            return PolicyModel(**{**given, **changed})

        model = make() if chunk is None else as_policy(chunk(make, **place))
        model.num_words = self.vocab_size
        # PolicyModel gathers the sequence, and its backward sums over the ranks
        if last and self.config.sequence_parallel:
            model.output_layer.sequence_parallel, model.output_layer.disable_grad_reduce = (
                False,
                True,
            )
        return model

    def hf_weights(self, models: Sequence[torch.nn.Module]) -> Iterator[tuple[str, Tensor]]:
        """See weights.gather_hf_weights."""
        return gather_hf_weights(self, models)


def make_bridge(path: Path, dtype: torch.dtype, fields: Mapping[str, Any]) -> Any:
    """The bridge for the Hugging Face folder `path`; `fields`: what the user gave, by
    arguments.model_fields.

    Model-parallel state must be initialised. Raises CheckpointError for a folder or family that
    cannot be used, ConfigError for flags that contradict its config.json."""
    hf = read_hf_config(path)
    open_fields = split_flags(hf, fields, str(path))
    family = family_class(hf.model_type)
    return type(f"Policy{family.__name__}", (_Bridge, family), {})(hf, dtype, open_fields)
