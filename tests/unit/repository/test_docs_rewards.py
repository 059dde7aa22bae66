"""docs/rewards.md has every built-in scorer and every key of --eval-config; its example loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from configs.command_line.loader import load_config
from configs.rules.eval_datasets import KEYS, eval_datasets
from configs.schema.reward import RM_TYPES

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "rewards.md").read_text(encoding="utf-8")
IN_QUOTES = set(re.findall(r"`([^`\n]+)`", PAGE))


def test_every_scorer_and_every_key_is_there() -> None:
    assert sorted({*RM_TYPES, *KEYS} - IN_QUOTES) == []


def test_the_example_is_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("aime.jsonl", "gpqa.jsonl"):
        (tmp_path / name).write_text('{"prompt": "p", "label": "A"}\n')
    start = PAGE.index("    eval:\n")
    lines = PAGE[start : PAGE.index("\nKeys:")].splitlines()
    (tmp_path / "eval.yaml").write_text("\n".join(line[4:] for line in lines))
    given = "--mock --label-key label --eval-config eval.yaml --eval-interval 1"
    config = load_config(given.split())
    aime, gpqa = eval_datasets(config)
    assert (aime.num_samples, aime.sampling["top_p"]) == (16, 0.7)
    assert gpqa.sampling == {"temperature": 0.0, "top_p": 0.7, "max_new_tokens": 16384}
