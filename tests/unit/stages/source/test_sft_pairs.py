"""Prompt + answer pairs for the supervised warm-up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.schema import DataConfig
from pipeline.core.errors import DataError
from pipeline.core.types import Sample
from stages.source import build_source, sft_pairs


class Letters:
    """A tokenizer of characters."""

    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return [ord(c) for c in text]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        raise NotImplementedError

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> str:
        raise NotImplementedError


class Answers:
    """A source of one sample again and again."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        return [[Sample(**self.fields)] for _ in range(num_samples)]


def test_sft_pairs_are_prompt_ids_and_answer_ids_with_the_end_token(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "label": 12}, {"prompt": "b", "label": ["c", "d"]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig(rollout_shuffle=False, label_key="label")
    pairs = sft_pairs(
        build_source(str(tmp_path / "a.jsonl"), config, 1, None, Letters()), Letters()
    )
    first, second = ([ord("a")], [ord("1"), ord("2"), 0]), ([ord("b")], [ord("c"), 0])
    assert [next(pairs) for _ in range(3)] == [first, second, first]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"label": None, "tokens": [1]}, "needs an answer with every prompt.*--label-key"),
        ({"label": [], "tokens": [1]}, "needs an answer"),
        ({"label": "a", "tokens": []}, "--apply-chat-template"),
    ],
)
def test_a_warm_up_without_answers_or_ids_says_so(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        next(sft_pairs(Answers(**fields), Letters()))  # type: ignore[arg-type]


def test_a_warm_up_needs_an_end_token() -> None:
    tokenizer = Letters()
    tokenizer.eos_token_id = None  # type: ignore[assignment]
    with pytest.raises(DataError, match="no eos token"):
        next(sft_pairs(Answers(label="a", tokens=[1]), tokenizer))  # type: ignore[arg-type]
