"""Rows of given answers are judged at load: the first bad one is named by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.schema import DataConfig
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.supervision import Supervision
from stages.engine.mock import MockTokenizer
from stages.source import build_source, taught_by

USER, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CHATS = DataConfig(input_key="messages", rollout_shuffle=False)


def load(path: Path, config: DataConfig = CHATS, **how: Any) -> Any:
    judge = taught_by(
        Supervision(tokenizer=MockTokenizer(), **how), rendered=config.apply_chat_template
    )
    return build_source(str(path), config, 1, None, MockTokenizer(), judge=judge)


def jsonl(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [USER]}, "no message is of role assistant"),
        ({"messages": [SAID]}, "the assistant speaks first"),
        ({"messages": [USER, {**SAID, "step_loss_mask": 2}]}, "message 1 has step_loss_mask 2"),
        ({"messages": [USER, {**SAID, "step_loss_mask": 0}]}, "nothing to train on"),
        ({"messages": [USER, {"role": "assistant"}]}, "the content of message 1"),
        ({"messages": "a"}, "text without a label"),
        ({"chat": [USER, SAID]}, "has no 'messages'"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_can_be_skipped(
    tmp_path: Path, row: Any, says: str
) -> None:
    good = {"messages": [USER, SAID]}
    path = jsonl(tmp_path, good, row)
    with pytest.raises(DataError, match=rf"rows\.jsonl line 2.*{says}"):
        load(path)
    skips = DataConfig(input_key="messages", skip_bad_rows=True)
    assert (load(path, skips).num_bad_rows, len(load(path, skips))) == (1, 1)


def test_a_length_is_judged_where_there_is_a_limit(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"messages": [USER, SAID]}, {"messages": [USER, SAID, USER, SAID]})
    assert len(load(path)) == 2
    with pytest.raises(DataError, match="line 2: 42 tokens: --rollout-max-context-len is 30"):
        load(path, max_tokens=30)


def test_a_column_of_parquet_with_chats(tmp_path: Path) -> None:
    """Messages of one column have the fields of all: the others' nulls are no masks."""
    chats = [[USER, SAID], [USER, {**SAID, "step_loss_mask": 0}, USER, SAID]]
    pq.write_table(pa.table({"messages": chats}), tmp_path / "rows.parquet")
    source = load(tmp_path / "rows.parquet")
    assert [group[0].prompt for group in source.get_samples(2)] == chats


def test_rendered_chats_are_refused_before_any_row_is_trained(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"messages": [USER, SAID], "label": [SAID]})
    with pytest.raises(ConfigError, match="--apply-chat-template with whole chats"):
        load(path, DataConfig(input_key="messages", apply_chat_template=True))
    with pytest.raises(DataError, match="the label is chat messages, but the prompt is text"):
        load(path, DataConfig(input_key="messages", label_key="label", apply_chat_template=True))
