"""The README's way to read a run's buffer with pandas and DuckDB, on the buffer of a mock run."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, read_metrics, run_entry


def snippet(run_dir: Path) -> str:
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"^    import pyarrow as pa, glob\n(?:    .*\n)+", readme, re.MULTILINE)
    assert found is not None
    return textwrap.dedent(found[0]).replace("runs/NAME", str(run_dir))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "read"
    flags = ("--mock", "--num-rollout", "3", "--keep-trajectories", "--name", path.name)
    ended = run_entry(*flags, "--runs-dir", str(path.parent))
    assert ended.returncode == 0, ended.stderr
    return path


def test_the_snippet_runs_and_duckdb_counts_the_same(run_dir: Path) -> None:
    import duckdb

    names: dict[str, Any] = {}
    code = snippet(run_dir)
    exec(code, names)
    rows = names["rows"]
    frame = rows.to_pandas()
    assert len(read_metrics(run_dir, "train")) == 3 <= len(frame) and {"reward", "tokens"} <= set(
        frame.columns
    )
    query = re.search(r'duckdb\.sql\("(.*?)"\)', code)
    assert query is not None
    assert duckdb.sql(query[1]).fetchall() == [(pytest.approx(frame["reward"].mean()),)]
