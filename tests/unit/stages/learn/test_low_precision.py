"""FP8 layers: whose they are, and what packs they take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from stages.learn.megatron.low_precision import check_low_precision, token_multiple


def config(**fields: Any) -> SimpleNamespace:
    base = {"tensor_model_parallel_size": 1, "sequence_parallel": False, "fp8": None, "fp4": None}
    return SimpleNamespace(**{**base, **fields})


@pytest.mark.parametrize(
    ("fields", "multiple"),
    [
        ({}, 1),
        ({"tensor_model_parallel_size": 4}, 1),
        ({"tensor_model_parallel_size": 4, "sequence_parallel": True}, 4),
        ({"fp8": "hybrid"}, 128),
        ({"fp4": "e2m1", "tensor_model_parallel_size": 2, "sequence_parallel": True}, 256),
        ({"fp8": "e4m3", "tensor_model_parallel_size": 2}, 128),
    ],
)
def test_packs_are_padded_to_what_the_layers_take(fields: dict[str, Any], multiple: int) -> None:
    assert token_multiple(config(**fields)) == multiple


def test_without_transformer_engine_low_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--fp8 hybrid: only TransformerEngine"):
        check_low_precision({"fp8": "hybrid", "fp4": None}, use_te=False)
    check_low_precision({"fp8": "hybrid"}, use_te=True)
    check_low_precision({"fp8": None, "hidden_dropout": 0.1}, use_te=False)
