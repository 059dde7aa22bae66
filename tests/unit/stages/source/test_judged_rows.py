"""Every row is judged at load, by what will be made of it: its prompt by the template, its label by
the scorer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.schema import DataConfig, RewardConfig
from pipeline.core.errors import DataError
from stages.source import answered, build_source, scored_by

GOOD = {"prompt": [{"role": "user", "content": "2 + 2?"}], "label": "4"}
CHAT = DataConfig(label_key="label", apply_chat_template=True, rollout_shuffle=False)
MATH = scored_by(RewardConfig(rm_type="math"))
EXACT = scored_by(RewardConfig(rm_type="exact_match"))
OWN = scored_by(RewardConfig(custom_rm_path="mine.py"))


class Chat:
    """A tokenizer of bytes, whose template shows all that it is given, and refuses a system prompt
    that is not the first."""

    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).decode()

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> str:
        if any(m["role"] == "system" for m in messages[1:]):
            raise ValueError("System message must be at the beginning")
        return json.dumps({"tools": kwargs.get("tools"), "messages": messages})


def load(folder: Path, rows: list[Any], config: DataConfig = CHAT, **how: Any) -> Any:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return build_source(str(path), config, 1, None, Chat(), **how)


def said(*messages: dict[str, Any]) -> dict[str, Any]:
    return {**GOOD, "prompt": list(messages)}


USER = {"role": "user", "content": "u"}
CALLS = [{"function": {"name": "calc", "arguments": {"x": 1}}}]


@pytest.mark.parametrize(
    ("row", "judge", "says"),
    [
        (said(USER, {"role": "user", "content": None}), None, "content of message 1 of 'prompt'"),
        (said({"role": "user", "content": 5}), None, "is number; expected text, a list of parts"),
        (said(USER, {"role": "system", "content": "s"}), None, "System message must be at the"),
        ({**GOOD, "label": None}, MATH, "the label is None.*rm_type math compares with it"),
        ({**GOOD, "label": None}, EXACT, "the label is None.*rm_type exact_match compares"),
        ({**GOOD, "label": " "}, EXACT, "the label is ' '"),
        ({**GOOD, "label": True}, EXACT, "the label is True"),
        ('{"prompt": "p", "label": NaN}', EXACT, "the label is nan"),
        ({**GOOD, "label": []}, EXACT, r"the label is \[\]"),
        ({**GOOD, "label": ["4", None]}, EXACT, "the label is"),
        ({**GOOD, "label": {"answer": "4"}}, MATH, '{"ground_truth": either}'),
        ({**GOOD, "label": {"ground_truth": None}}, MATH, "the label is"),
        ({**GOOD, "label": "###"}, MATH, "is no formula"),
        ({**GOOD, "label": None}, answered, "the warm-up teaches it"),
        ({**GOOD, "metadata": {"rm_type": "maths"}}, MATH, "rm_type 'maths'; expected one of math"),
        ({**GOOD, "label": "1/2", "metadata": {"rm_type": "dapo"}}, MATH, "'1/2' is no whole num"),
        ({**GOOD, "label": None, "metadata": {"rm_type": "f1"}}, MATH, "rm_type f1 compares with"),
        ({**GOOD, "metadata": {"rm_type": "remote_rm"}}, MATH, "rm_type remote_rm; set --rm-url"),
        ({**GOOD, "metadata": {"rm_type": "judge"}}, MATH, "rm_type judge: set --judge-url"),
        ({**GOOD, "metadata": {"rm_type": "ifbench"}}, MATH, "ifbench: .*git clone"),
        ({**GOOD, "label": None, "metadata": {"rm_type": "gpqa"}}, MATH, None),
        ({**GOOD, "metadata": {"rm_type": "reasoning_gym"}}, MATH, "prompts of reasoning_gym:TASK"),
        ({**GOOD, "label": None, "metadata": {"rm_type": "exact_match"}}, None, None),
        ('{"prompt": "p", "label": ' + "9" * 5000 + "}", EXACT, "cannot be read.*4300 digits"),
        ({**GOOD, "metadata": '{"n": ' + "9" * 5000 + "}"}, EXACT, "4300 digits"),
        ({**GOOD, "tools": "[" * 100_000}, EXACT, "'tools' is text that is not JSON"),
    ],
)
def test_a_row_of_no_use_is_named_at_load_or_skipped_and_counted(
    tmp_path: Path, row: Any, judge: Callable[..., None] | None, says: str | None
) -> None:
    rows = [GOOD, row, GOOD]
    if says is None:
        assert load(tmp_path, rows, judge=judge).num_bad_rows == 0
        return
    with pytest.raises(DataError, match=rf"rows\.jsonl line 2:? .*{says}"):
        load(tmp_path, rows, judge=judge)
    config = dataclasses.replace(CHAT, skip_bad_rows=True)
    source = load(tmp_path, rows, config, judge=judge)
    assert (len(source), source.num_bad_rows) == (2, 1)
    assert [g[0].label for g in source.get_samples(2)] == ["4", "4"]


@pytest.mark.parametrize(
    "label", ["4", 4, 0.5, 0, ["4", 5], {"ground_truth": "4"}, {"ground_truth": ["4"], "style": 1}]
)
@pytest.mark.parametrize("judge", [MATH, EXACT, answered])
def test_labels_that_are_understood(tmp_path: Path, label: Any, judge: Any) -> None:
    source = load(tmp_path, [{**GOOD, "label": label}], judge=judge)
    assert source.get_samples(1)[0][0].label == label


@pytest.mark.parametrize("label", [None, True, {"tests": ["a"]}, [], float("nan")])
def test_what_a_function_of_ones_own_makes_of_a_label_is_its_own_affair(
    tmp_path: Path, label: Any
) -> None:
    assert load(tmp_path, [{**GOOD, "label": label}], judge=OWN).num_bad_rows == 0


def test_a_message_that_calls_tools_need_not_speak(tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": CALLS}
    for message in (call, {**call, "content": None}):
        sample = load(tmp_path, [said(USER, message)]).get_samples(1)[0][0]
        shown = json.loads(sample.prompt)["messages"]
        assert shown == [USER, {"role": "assistant", "content": None, "tool_calls": CALLS}]


def test_the_padding_of_parquet_reaches_no_template(tmp_path: Path) -> None:
    """Arrow gives every row the fields of all rows; those it lacks are null."""

    def tool(name: str, *parameters: str) -> dict[str, Any]:
        return {"name": name, "parameters": {p: {"type": "string"} for p in parameters}}

    rows = [
        {
            **said(USER, {"role": "assistant", "content": None, "tool_calls": CALLS}, USER),
            "tools": [tool("calc", "x", "y")],
            "metadata": {"hint": None},
        },
        {**said(USER), "tools": [tool("search", "query")], "metadata": {"hint": "h"}},
    ]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, second = (g[0] for g in build_source(str(path), CHAT, 1, None, Chat()).get_samples(2))
    for sample, row in ((first, rows[0]), (second, rows[1])):
        assert json.loads(sample.prompt) == {"tools": row["tools"], "messages": row["prompt"]}
        assert sample.metadata["tools"] == row["tools"]
    assert first.metadata["hint"] is None  # what a user's function reads stays as it is


def test_a_parquet_row_that_cannot_be_read_is_a_bad_row(tmp_path: Path) -> None:
    text = pa.array([b"fine", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": text}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet row 1 cannot be read"):
        build_source(str(tmp_path / "rows.parquet"), DataConfig())
    config = DataConfig(skip_bad_rows=True)
    assert build_source(str(tmp_path / "rows.parquet"), config).num_bad_rows == 1
