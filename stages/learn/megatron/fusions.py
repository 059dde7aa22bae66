"""Which of Megatron's fused kernels a model is computed with, by its layers' spec.

Megatron-LM's command line turns most of them on, Megatron-core's TransformerConfig none: a script
counts on the former."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

from pipeline.core.errors import ConfigError

logger = logging.getLogger(__name__)
ROPE = "apply_rope_fusion"
# Kernels of apex and TransformerEngine, and torch.compile'd fusions, which the local spec goes
# without.
_LOCAL = {
    ROPE: False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "moe_grouped_gemm": False,
    "moe_permute_fusion": False,
    "persist_layer_norm": False,
}


def default_fusions(shape: Mapping[str, Any], *, use_te: bool) -> dict[str, bool]:
    """Where nothing is said. `shape`: of the model, TransformerConfig fields."""
    if not use_te:
        return {}
    return {
        "bias_activation_fusion": True,
        "bias_dropout_fusion": True,
        ROPE: not _has_rope_of_its_own(shape),
        "gradient_accumulation_fusion": (
            importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None
        ),
    }


def forced_fusions(
    fields: Mapping[str, Any], shape: Mapping[str, Any], *, use_te: bool
) -> dict[str, bool]:
    """What holds whatever was said (`fields`). Raises ConfigError for what would be computed
    wrong."""
    if use_te:
        if fields.get(ROPE) and shape.get("rotary_interleaved"):
            raise ConfigError(
                "--rope-fusion: TransformerEngine's kernel for packed sequences takes no rotary"
                " embedding of interleaved pairs, as this model's; drop the flag"
            )
        return {}
    if absent := sorted(name for name in _LOCAL if fields.get(name)):
        logger.warning(
            "without TransformerEngine there is no %s: off",
            ", ".join("--" + n.replace("_", "-") for n in absent),
        )
    return _LOCAL


def _has_rope_of_its_own(shape: Mapping[str, Any]) -> bool:
    """Megatron-core 0.16.1 passes nothing of interleaved pairs to the kernel for packed sequences
    (rope_utils.apply_rotary_pos_emb), and has one for latent attention under YaRN alone."""
    return bool(shape.get("rotary_interleaved") or shape.get("multi_latent_attention"))
