"""`--mock` runs with every preset, with any model preset in front, and with what the examples show:
nobody needs a model or a device to try a configuration."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.command_line.loader import load_config
from pipeline.wiring import FAMILIES
from pipeline.wiring.assemble import assemble
from tests.conftest import ROOT, read_metrics
from tests.flags import later_wins
from train_async import train

PRESETS = sorted((ROOT / "configs/presets").glob("*.yaml"))
MODELS = sorted((ROOT / "configs/models").glob("*.yaml"))
FLAG_LISTS = [p for p in MODELS if isinstance(yaml.safe_load(p.read_text()), list)]
FEW = ("--num-rollout", "2", "--mock-seconds-per-token", "0.0001", "--mock-step-seconds", "0.01")


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of the preset that needs some made first, as its first lines say."""
    path = tmp_path_factory.mktemp("colours") / "colours.jsonl"
    script = str(ROOT / "examples/colours/make_data.py")
    subprocess.run([sys.executable, script, str(path)], check=True, cwd=ROOT, timeout=120)
    return path


def mock_run(tmp_path: Path, *flags: str) -> list[dict[str, Any]]:
    """The train records of a run with these flags."""
    words = ["--mock", *flags, *FEW, "--runs-dir", str(tmp_path), "--name", "m"]
    asyncio.run(train(assemble(load_config(later_wins(words), families=FAMILIES), started_at=0.0)))
    return read_metrics(tmp_path / "m", "train")


def flags_of(preset: Path, colours: Path) -> tuple[str, ...]:
    own = ("--prompt-data", str(colours)) if preset.stem == "colours" else ()
    return ("--config", str(preset), *own)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_every_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: Path, colours: Path
) -> None:
    monkeypatch.chdir(ROOT)
    rows = mock_run(tmp_path, *flags_of(preset, colours))
    assert len(rows) == 2
    assert rows[-1]["samples_failed"] == 0 and rows[-1]["num_samples"] > 0


@pytest.mark.parametrize("model", ["qwen3-0.6B", "qwen3-30B-A3B", "deepseek-v3"])
def test_a_model_preset_ahead_of_the_quickstart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """One of each kind; the next test takes all of them as far as they differ."""
    monkeypatch.chdir(ROOT)
    preset, ahead = PRESETS[-1].with_name("quickstart.yaml"), MODELS[0].with_name(f"{model}.yaml")
    small = ("--rollout-batch-size", "2", "--n-samples-per-prompt", "2", "--eval-interval", "9")
    rows = mock_run(
        tmp_path, "--config", str(ahead), str(preset), *small, "--eval-max-prompts", "2"
    )
    assert len(rows) == 2 and rows[-1]["samples_failed"] == 0


MEGATRON = [p for p in PRESETS if "--train-backend fsdp" not in p.read_text()]


@pytest.mark.parametrize("preset", MEGATRON, ids=lambda p: p.stem)
def test_every_model_preset_ahead_of_every_preset(
    monkeypatch: pytest.MonkeyPatch, preset: Path, colours: Path
) -> None:
    """A model preset is a list of Megatron's flags: FSDP refuses them by name."""
    monkeypatch.chdir(ROOT)
    assert len(FLAG_LISTS) >= 28
    for model in FLAG_LISTS:
        ahead = ("--config", str(model))
        config = load_config(["--mock", *ahead, *flags_of(preset, colours)], families=FAMILIES)
        assert config.megatron and config.run.mock


SHAPES = [p for p in MODELS if p not in FLAG_LISTS]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda p: p.stem)
def test_every_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Path) -> None:
    monkeypatch.chdir(ROOT)
    rows = mock_run(tmp_path, "--hf-checkpoint", f"tiny:{shape}", "--rollout-batch-size", "2")
    assert len(rows) == 2 and rows[-1]["samples_failed"] == 0


EXAMPLES = {
    "guess_the_number": ("--config", "examples/guess_the_number/preset.yaml"),
    "solver_verifier": ("--config", "examples/solver_verifier/preset.yaml"),
    "custom_reward": ("--custom-rm-path", "examples/custom_reward.py", "--reward-key", "score"),
    "calculator_agent": ("--custom-generate-function-path", "examples/calculator_agent.py"),
    "generate": ("--custom-generate-function-path", "examples/hooks/generate.py"),
    "dynamic_filter": ("--dynamic-sampling-filter-path", "zero_std"),
    "group_reward": ("--custom-rm-path", "examples/hooks/group_reward.py", "--group-rm"),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_a_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: str
) -> None:
    monkeypatch.chdir(ROOT)
    rows = mock_run(tmp_path, *EXAMPLES[example], "--rollout-batch-size", "2")
    assert len(rows) == 2 and rows[-1]["samples_failed"] == 0


def test_bounds_in_tokens_of_a_model_that_is_not_there_are_not_applied_to_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    rows = mock_run(tmp_path, "--rollout-max-prompt-len", "1", "--rollout-max-context-len", "2")
    assert len(rows) == 2
    assert "--rollout-max-prompt-len and --rollout-max-context-len are not applied" in caplog.text


DISTILL = ("--use-opd", "--opd-teacher-load", "/models/nowhere")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--use-rollout-routing-replay", "--num-experts", "8"), "--use-rollout-routing-replay"),
        (DISTILL, "--use-opd"),
        ((*DISTILL, "--prompt-data", "configs/presets/quickstart-warmup.jsonl"), "are random"),
    ],
)
def test_what_simulated_engines_do_not_have_is_left_out_by_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    flags: tuple[str, ...],
    named: str,
) -> None:
    monkeypatch.chdir(ROOT)
    rows = mock_run(tmp_path, *flags, "--rollout-batch-size", "2")
    assert len(rows) == 2 and rows[-1]["samples_failed"] == 0
    assert named in caplog.text
    # the configuration that was asked for is the run's
    assert flags[0] in (tmp_path / "m" / "config.yaml").read_text()
