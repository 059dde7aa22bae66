"""Data that is rare and would stop a run in its middle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest

from configs.schema import DataConfig
from pipeline.core.errors import DataError
from pipeline.core.tagged_json import from_jsonable, to_jsonable
from stages.source import build_source


class Bytes:
    """A tokenizer of one token a byte."""

    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).decode()

    def apply_chat_template(self, messages: object, **kwargs: object) -> str:
        raise AssertionError("plain text needs no template")


def test_held_out_prompts_are_as_many_as_asked_whatever_training_skipped() -> None:
    source = build_source(
        "reasoning_gym:chain_sum?min_terms=2&max_terms=6",
        DataConfig(),
        max_prompt_len=80,
        tokenizer=Bytes(),
    )
    while source.num_too_long < 1024:  # two chunks' worth
        source.get_samples(100)
    assert len(source.all_prompts(600)) == 600


def test_held_out_prompts_all_too_long_is_an_error_not_a_loop() -> None:
    with pytest.raises(DataError, match="longer than"):
        build_source(
            "reasoning_gym:chain_sum", DataConfig(), max_prompt_len=5, tokenizer=Bytes()
        ).all_prompts(3)


def test_a_whole_chunk_of_a_task_with_fractions_is_handed_out() -> None:
    source = build_source(
        "reasoning_gym:gsm_symbolic?size=40&seed=11", DataConfig(rollout_shuffle=False)
    )
    entries = [g[0].metadata["reasoning_gym"]["entry"] for g in source.get_samples(40)]
    kept = [from_jsonable(json.loads(json.dumps(entry))) for entry in entries]
    assert [to_jsonable(entry) for entry in kept] == entries


@pytest.mark.parametrize(
    "value",
    [
        Fraction(3, 4),
        {"a": (1, (2,))},
        {1: {2: Fraction(1, 3)}},
        {"__tuple__": [1]},
        [{"__fraction__": "1/2"}],
    ],
)
def test_jsonable_round_trip(value: object) -> None:
    assert from_jsonable(json.loads(json.dumps(to_jsonable(value)))) == value


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "a", "label": "\\ud800"}',
        '{"prompt": "\\ud800", "label": 1}',
        '{"prompt": "a", "label": 1, "metadata": {"x": "\\ud800"}}',
        "[" * 100_000,
    ],
)
def test_text_that_cannot_be_kept_is_a_malformed_row(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "fine", "label": 1}\n' + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        build_source(str(path), DataConfig(label_key="label"))
    assert (
        build_source(str(path), DataConfig(label_key="label", skip_bad_rows=True)).num_bad_rows == 1
    )


def test_a_data_file_names_no_code_to_run(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps(
            {
                "prompt": "a",
                "metadata": {"custom_rm_path": "evil.py", "generate_function_path": "evil.py"},
            }
        )
    )
    sample = build_source(str(path), DataConfig()).get_samples(1)[0][0]
    assert sample.custom_rm_path is None and sample.generate_function_path is None
