"""A finished mock run can be looked into: list, show, export, account."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
import pytest

from pipeline.__main__ import main
from pipeline.run.record_file import read_records
from tests.integration.run.test_mock_run import FAST, run_entry

SIZE = ("--rollout-batch-size", "3", "--n-samples-per-prompt", "4", "--num-rollout", "5")


def train(folder: Path, *flags: str) -> Path:
    """The run's directory."""
    done = run_entry(*FAST, *SIZE, *flags, "--runs-dir", str(folder), "--name", "m")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "m"


@pytest.mark.parametrize(
    "flags", [(), ("--async-buffer-size", "2"), ("--buffer-durability", "memory")]
)
def test_the_last_rollouts_can_be_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    run = train(tmp_path, *flags)
    assert main(["buffer", str(run), "ledger", "--json"]) == 0
    ledger = json.loads(capsys.readouterr().out)
    assert (ledger["totals"]["lost"], ledger["totals"]["duplicated"]) == (0, 0)
    last = {g["group"] for g in ledger["groups"] for c in g["consumed"] if c["rollout"] >= 3}
    assert main(["buffer", str(run)]) == 0
    listed = {int(line.split()[1]) for line in capsys.readouterr().out.splitlines()}
    assert len(last) == 6 and last <= listed
    assert main(["buffer", str(run), "show", str(min(last)), "2"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[3] == "tokens: the mock's tokenizer" and "'<think>'" in shown[5]
    target = tmp_path / "out.parquet"
    assert main(["buffer", str(run), "export", str(target)]) == 0
    rows = [r for r in pyarrow.parquet.read_table(target).to_pylist() if r["group_index"] in last]
    assert len(rows) == 24 and {r["rollout_id"] for r in rows} == {3, 4}
    for group in last:
        mine = [r for r in rows if r["group_index"] == group]
        assert sum(r["advantage"] for r in mine) == pytest.approx(0, abs=1e-5)
        best = max(mine, key=lambda r: r["reward"])
        assert best["advantage"] == max(r["advantage"] for r in mine)
        for row in mine:
            assert row["advantages"] == pytest.approx([row["advantage"]] * row["response_length"])
    assert main(["buffer", str(run), "verify"]) == 0


def test_none_is_kept_where_none_is_asked_for(tmp_path: Path) -> None:
    run = train(tmp_path, "--keep-last-rollouts", "0")
    assert not list((run / "buffer").glob("segment-*"))
    assert len(read_records(run / "metrics.jsonl")) >= 5
