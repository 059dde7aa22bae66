"""FP8 and FP4 layers: TransformerEngine's alone, over packs of a fitting number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.core.errors import ConfigError

# Tokens of a rank come in multiples of this: TransformerEngine's GEMMs want 16 (32 with MXFP8), its
# block-scaled recipe tiles of 128. slime pads to as much (--data-pad-size-multiplier).
TOKENS = 128
_FLAGS = ("fp8", "fp4")


def check_low_precision(fields: Mapping[str, Any], *, use_te: bool) -> None:
    """Raises ConfigError for --fp8 and --fp4 where there is no TransformerEngine: the local layers
    would compute in bfloat16 and say nothing."""
    if not use_te and (asked := [name for name in _FLAGS if fields.get(name)]):
        raise ConfigError(
            f"{' '.join(f'--{name} {fields[name]}' for name in asked)}: only TransformerEngine has"
            " such layers, and it is not installed, or there is no GPU. Install it (`make"
            " setup-te`), or drop the flag"
        )


def token_multiple(config: Any) -> int:
    """The number of which a pack's tokens must be a multiple on a context-parallel rank, by
    Megatron's TransformerConfig: sequence parallelism splits them evenly over tensor ranks."""
    ranks = int(config.tensor_model_parallel_size) if config.sequence_parallel else 1
    return ranks * (TOKENS if any(getattr(config, name) for name in _FLAGS) else 1)
