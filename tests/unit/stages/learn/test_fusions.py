"""Which fused kernels a model is computed with."""

from __future__ import annotations

import pytest

from pipeline.core.errors import ConfigError
from stages.learn.megatron.fusions import ROPE, default_fusions, forced_fusions

MODELS = {
    "qwen3": {"multi_latent_attention": False},
    "glm4": {"multi_latent_attention": False, "rotary_interleaved": True},
    "deepseek_v3": {"multi_latent_attention": True},
}


@pytest.mark.parametrize(
    ("model", "rope"), [("qwen3", True), ("glm4", False), ("deepseek_v3", False)]
)
def test_transformer_engine_gets_what_megatron_lm_turns_on(model: str, rope: bool) -> None:
    found = default_fusions(MODELS[model], use_te=True)
    assert found["bias_activation_fusion"] and found["bias_dropout_fusion"]
    assert found[ROPE] is rope and not found["gradient_accumulation_fusion"]  # apex is not here
    assert forced_fusions({}, MODELS[model], use_te=True) == {}


def test_local_layers_go_without(caplog: pytest.LogCaptureFixture) -> None:
    assert default_fusions(MODELS["qwen3"], use_te=False) == {}
    forced = forced_fusions({"moe_grouped_gemm": True, ROPE: False}, {}, use_te=False)
    assert forced[ROPE] is forced["moe_grouped_gemm"] is False
    assert [r.getMessage() for r in caplog.records] == [
        "without TransformerEngine there is no --moe-grouped-gemm: off"
    ]


def test_a_kernel_that_would_compute_another_rotary_embedding_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--rope-fusion: .*interleaved"):
        forced_fusions({ROPE: True}, MODELS["glm4"], use_te=True)
    assert forced_fusions({ROPE: True}, MODELS["qwen3"], use_te=True) == {}
