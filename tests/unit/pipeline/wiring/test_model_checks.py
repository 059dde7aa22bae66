"""A model that does not fit the flags is refused at load, from its config.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.command_line.loader import load_config
from configs.schema import Config, ModelConfig, RunConfig
from pipeline.core.errors import CheckpointError, ConfigError
from pipeline.wiring.foreign_flags import FAMILIES
from pipeline.wiring.model_checks import check_model, read_shape
from tests.flags import later_wins

Make = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path) -> Make:
    """A folder with a config.json."""

    def make(**shape: Any) -> str:
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "config.json").write_text(json.dumps(shape))
        return str(tmp_path / "model")

    return make


def load(folder: str, *flags: str) -> Config:
    data = Path(folder).parent / "data.jsonl"
    data.write_text(json.dumps({"prompt": "p"}) + "\n")
    words = ["--hf-checkpoint", folder, "--prompt-data", str(data), "--rm-type", "random"]
    return load_config(later_wins([*words, *flags]), FAMILIES)


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "qwen3_vl"])
def test_an_architecture_that_megatron_does_not_have_is_refused(model: Make, kind: str) -> None:
    folder = model(model_type=kind)
    with pytest.raises(ConfigError) as caught:
        load(folder)
    message = str(caught.value)
    assert f"--hf-checkpoint {folder} is a {kind}" in message
    assert "qwen3" in message and "Add --train-backend fsdp" in message
    for takes_it in (["--train-backend", "fsdp"], ["--debug-rollout-only"], ["--mock"]):
        load(folder, *takes_it)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "kimi_k2"])
def test_one_that_it_has_passes(model: Make, kind: str) -> None:
    load(model(model_type=kind))


def test_it_is_refused_after_a_download_too(model: Make) -> None:
    with pytest.raises(ConfigError, match="is a gpt2"):
        check_model(
            Config(model=ModelConfig(hf_checkpoint="openai/gpt2")), Path(model(model_type="gpt2"))
        )
    check_model(Config(run=RunConfig(mock=True)), Path(model(model_type="gpt2")))


def test_what_a_rank_would_refuse_in_config_json_is_refused_on_the_driver(model: Make) -> None:
    shape = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    variant = Path(model(**shape, attention_bias=True))
    with pytest.raises(CheckpointError, match="a llama with attention_bias or mlp_bias"):
        check_model(Config(), variant)
    known = Path(model(**shape))
    check_model(Config(megatron={"hidden_size": 64}), known)
    with pytest.raises(ConfigError, match=r"--hidden-size 32, but .* has 64: drop the flag"):
        check_model(Config(megatron={"hidden_size": 32}), known)
    check_model(Config(run=RunConfig(debug_rollout_only=True)), variant)


@pytest.mark.parametrize(
    "flag", ["--rollout-max-response-len", "--eval-max-response-len", "--rollout-max-prompt-len"]
)
def test_a_length_beyond_the_context_is_refused(model: Make, flag: str) -> None:
    folder = model(model_type="qwen3", max_position_embeddings=512)
    with pytest.raises(ConfigError, match=rf"^{flag} 512: the model has a context of 512"):
        load(folder, flag, "512")
    load(folder, flag, "511")
    load(folder, flag, "512", "--sglang-context-length", "1024")
    with pytest.raises(ConfigError, match=r"--sglang-context-length has a context of 256"):
        load(folder, flag, "300", "--sglang-context-length", "256")


def test_a_context_beyond_the_models_is_refused(model: Make) -> None:
    folder = model(model_type="qwen3", text_config={"max_position_embeddings": 512})
    with pytest.raises(ConfigError, match=r"^--rollout-max-context-len 513: .*at most that"):
        load(folder, "--rollout-max-context-len", "513")
    load(folder, "--rollout-max-context-len", "512")


def test_a_tiny_models_file_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "shape.yaml"
    file.write_text("model_type: gpt2\n")
    assert read_shape(f"tiny:{file}") == {"model_type": "gpt2"}
    file.write_text("{")
    assert read_shape(f"tiny:{file}") == {}


@pytest.mark.parametrize("spec", [None, "", "nowhere", "Qwen/Qwen3-0.6B", "pypi-gguf:package"])
def test_of_what_cannot_be_read_nothing_is_known(spec: str | None) -> None:
    assert read_shape(spec) == {}
