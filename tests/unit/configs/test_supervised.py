"""`--loss-type sft_loss` by itself: no reward, no engines, one sample a row."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.command_line.loader import load_config
from configs.schema import Config
from pipeline.core.errors import ConfigError
from pipeline.wiring.foreign_flags import FAMILIES
from pipeline.wiring.greeting import greeting


@pytest.fixture
def chats(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "chats.jsonl"
    path.write_text("{}")
    tiny = "tiny:configs/models/tiny-qwen3.yaml"
    return (
        *("--hf-checkpoint", tiny, "--prompt-data", str(path), "--input-key", "messages"),
        *("--loss-type", "sft_loss"),
    )


def load(*words: str) -> Config:
    return load_config(words, FAMILIES)


def test_nothing_is_sampled_or_scored(chats: tuple[str, ...]) -> None:
    config = load(*chats)
    assert config.answers_are_given and not config.has_engines
    assert config.rollout.n_samples_per_prompt == 1
    assert "engine" not in greeting(config)
    assert load(*chats, "--debug-train-only").has_engines is False  # as slime's scripts say it
    assert load(*chats, "--n-samples-per-prompt", "2").rollout.n_samples_per_prompt == 2


def test_evaluations_need_engines_and_a_reward(chats: tuple[str, ...]) -> None:
    evaluates = (*chats, "--eval-interval", "5", "--eval-prompt-data", chats[3])
    with pytest.raises(ConfigError, match="--rm-type"):
        load(*evaluates)
    assert load(*evaluates, "--custom-rm-path", "examples/custom_reward.py").has_engines
    compared = (*evaluates, "--rm-type", "exact_match")
    with pytest.raises(ConfigError, match="--label-key"):
        load(*compared)
    assert load(*compared, "--eval-label-key", "label").has_engines


def test_a_function_of_ones_own_makes_the_answers(chats: tuple[str, ...]) -> None:
    own = ("--custom-generate-function-path", "examples/sft.py")
    config = load(*chats, *own, "--custom-rm-path", "examples/sft.py:reward")
    assert config.has_engines and config.rollout.n_samples_per_prompt == 8


def test_the_preset_is_in_order() -> None:
    config = load("--config", "configs/presets/sft.yaml")
    assert config.answers_are_given and not config.has_engines


def test_training_alone_without_answers_is_refused(chats: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"--load-debug-rollout-data.*sft_loss"):
        load(*chats[:-2], "--rm-type", "random", "--debug-train-only")


def test_the_kinds_of_masks_are_slimes(chats: tuple[str, ...]) -> None:
    for kind in ("qwen", "qwen3", "qwen3_5", "distill_qwen"):
        assert load(*chats, "--loss-mask-type", kind).data.loss_mask_type == kind
    with pytest.raises(ConfigError, match="--loss-mask-type llama"):
        load(*chats, "--loss-mask-type", "llama")


def test_slimes_rollout_function_for_it_is_known_by_name(chats: tuple[str, ...]) -> None:
    named = ("--rollout-function-path", "slime.rollout.sft_rollout.generate_rollout")
    for words in ((*chats, *named), (*chats[:-2], *named)):
        config = load(*words)
        assert config.answers_are_given
        assert not any("n-samples-per-prompt" in note for note in config.notes)
