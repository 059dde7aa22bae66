"""A model that sees, through everything that is real: SGLang looks, FSDP ranks under Ray learn,
pushes bring both towers back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT, read_metrics, run_entry, run_module

pytestmark = pytest.mark.slow
PRESET = ("--config", str(ROOT / "configs" / "presets" / "colours.yaml"))
SHORT = (
    "--rollout-batch-size",
    "4",
    "--n-samples-per-prompt",
    "8",
    "--rollout-max-response-len",
    "4",
    "--async-buffer-size",
    "0",
)


def test_engines_see_what_the_learner_trains_on(tmp_path: Path, nothing_left_behind: None) -> None:
    """Synchronous: after every push engine and learner must agree about answers to images, vision
    tower and all."""
    data, run = tmp_path / "colours.jsonl", tmp_path / "v"
    made = run_module("examples.colours.make_data", str(data))
    assert made.returncode == 0, made.stderr
    flags = (
        "--prompt-data",
        str(data),
        "--runs-dir",
        str(tmp_path),
        "--name",
        "v",
        "--keep-trajectories",
    )
    reward = tmp_path / "reward.py"
    reward.write_text(
        "async def reward_func(args, sample):\n    return float(sum(sample.tokens[-2:]) % 2)\n"
    )
    done = run_entry(
        *PRESET, *SHORT, *flags, "--custom-rm-path", str(reward), "--num-rollout", "3", timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    train = read_metrics(run, "train")
    assert [r["policy_version"] for r in train] == [0, 1, 2] and all(
        r["grad_norm"] > 0 for r in train
    )
    for record in train:
        assert (
            abs(record["kl_rollout_old"]) < 1e-6
            and record["rollout_ratio_p99"] == record["rollout_ratio_p01"] == 1.0
        )
    assert json.loads((run / "summary.json").read_text())["push_count"] == 3
    assert (run / "checkpoints" / "latest" / "fsdp" / "slipstream.json").is_file()
    _still_sees(run / "checkpoints" / "latest" / "hf")


def _still_sees(folder: Path) -> None:
    """The export is whole: model, processor, template."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=text, images=[Image.new("RGB", (32, 32), "red")], return_tensors="pt")
    assert (
        model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1]
        > inputs["input_ids"].shape[1]
    )
