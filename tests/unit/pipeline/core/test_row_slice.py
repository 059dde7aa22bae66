"""One reader of `path@[a:b]`: what the checks at load take, the source takes, and the other way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.rules.inputs import check_data
from configs.schema import DataConfig
from pipeline.core.errors import DataError
from pipeline.core.row_slice import split_slice
from stages.source.file_rows import FileRows


@pytest.mark.parametrize(
    ("inside", "part"),
    [
        (":", slice(None)),
        ("2:", slice(2, None)),
        (":-1", slice(None, -1)),
        ("-3:-1", slice(-3, -1)),
        ("1:-1", slice(1, -1)),
        (" 1 : 3 ", slice(1, 3)),
    ],
)
def test_a_slice_is_pythons_at_load_and_in_the_source(
    inside: str, part: slice, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{i}"}) + "\n" for i in range(6)))
    spec = f"{file}@[{inside}]"
    assert split_slice(spec) == (file, part)
    assert list(check_data("--prompt-data", spec)) == []
    rows = FileRows(spec, DataConfig())
    assert [rows.row(0, i).prompt for i in range(len(rows))] == [f"p{i}" for i in range(6)][part]


@pytest.mark.parametrize("inside", ["x", "1", "1:2:3", "1-2", "1.5:", "3:3", "-1:-3"])
def test_what_is_no_slice_is_refused_in_both(inside: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "p"}) + "\n")
    spec = f"{file}@[{inside}]"
    with pytest.raises(DataError, match="expected"):
        FileRows(spec, DataConfig())
    (problem,) = check_data("--prompt-data", spec)
    assert problem.startswith(f"--prompt-data {spec}: ")
