"""The off-policy experiment's own arithmetic: nothing is run twice, the best rate is chosen from
the choosing seeds alone, differences are paired by seed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from benchmarks import off_policy
from benchmarks.off_policy_reward import reward_func
from benchmarks.off_policy_runs import METHODS, Book, Cell, Protocol
from benchmarks.off_policy_statistics import best_rate, interval, paired, samples_to
from benchmarks.off_policy_tasks import MODEL, TASKS, scratchpad, write_scratchpads
from configs.command_line.entry import parse_or_exit
from pipeline.core.types import Sample
from pipeline.wiring import FAMILIES
from stages.engine.launch import Engine

PROTOCOL = Protocol(model="0123456789ab", rollouts=20)


def a_row(cell: Cell, late: float, protocol: Protocol = PROTOCOL) -> dict[str, Any]:
    curve = [[5, late / 2], [10, late], [15, late], [20, late]]
    return {**asdict(cell), **asdict(protocol), "late": late, "held_out": curve, "ess_fraction": 1}


def late_of(cell: Cell) -> float:
    """Higher at 0.2 than at 0.1 on the choosing seeds; the other way round on the fresh ones."""
    better = (cell.lr == 0.2) == (cell.seed < 4)
    return 0.9 + 0.01 * better + 0.001 * cell.seed - 0.002 * cell.staleness


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_every_method_is_a_run(method: str, task: str, tmp_path: Path) -> None:
    cell = Cell(method=method, staleness=8, lr=0.1, seed=1)
    words = replace(PROTOCOL, task=task).flags(cell, tmp_path)
    words[words.index(str(tmp_path))] = MODEL
    parse_or_exit([*words, "--mock"], prog="train_async.py", families=FAMILIES)


def test_a_scratchpad_ends_with_the_answer_and_is_long(tmp_path: Path) -> None:
    assert scratchpad("cat", backward=True) == "at c>t ac> tac"
    assert scratchpad("cat", backward=False) == "at c>t ca> cat"
    write_scratchpads(tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    words = [(r["prompt"].split()[-1], r["label"].rpartition(" ")[2]) for r in rows]
    right = sum(said == word[::-1] for word, said in words) / len(words)
    assert 0.18 < right < 0.22 and all(len(r["label"]) >= 64 for r in rows)


async def test_the_scratchpads_reward_is_of_its_last_word() -> None:
    sample = Sample(label="tac", response="at c>t ac> tac")
    assert await reward_func(None, sample) == 1.0
    sample.response = "tac > cat"
    assert await reward_func(None, sample) == 0.0


def test_student_interval() -> None:
    mean, half = interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    # s = sqrt(5/3), t(3) = 3.182
    assert half == pytest.approx(3.182 * math.sqrt(5 / 3) / 2)
    assert interval([1.0]) == (1.0, math.inf)


def test_differences_are_of_the_same_seed() -> None:
    ours = [{"seed": 5, "late": 0.5}, {"seed": 4, "late": 0.9}]
    theirs = [{"seed": 4, "late": 0.8}, {"seed": 5, "late": 0.6}, {"seed": 6, "late": 0.0}]
    assert paired(ours, theirs) == pytest.approx([-0.1, 0.1])


def test_the_smaller_of_equal_rates() -> None:
    assert best_rate({2.0: [{"late": 0.5}], 1.0: [{"late": 0.5}], 3.0: []}) == 1.0
    with pytest.raises(ValueError, match="choosing"):
        best_rate({1.0: []})


def test_samples_to_a_reward() -> None:
    row = {"held_out": [[5, 0.1], [10, 0.92], [15, 0.85]]}
    assert samples_to(0.9, row, 128) == 1280
    assert samples_to(0.95, row, 128) is None


def test_a_book_goes_on_where_it_stopped(tmp_path: Path) -> None:
    cell = Cell(method="tis", staleness=8, lr=0.1, seed=1)
    book = Book.open(tmp_path / "runs.jsonl")
    assert book.find(cell, PROTOCOL) is None
    book.write(a_row(cell, 0.5))
    again = Book.open(tmp_path / "runs.jsonl")
    assert again.find(cell, PROTOCOL) == a_row(cell, 0.5)
    assert again.find(cell, Protocol(model="another", rollouts=20)) is None
    (tmp_path / "runs.jsonl").open("a").write("{torn")
    with pytest.raises(ValueError, match=r"runs\.jsonl:2"):
        Book.open(tmp_path / "runs.jsonl")


def test_the_whole_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[Cell] = []

    def run(cell: Cell, protocol: Protocol, model: Path, engine: Sequence[str]) -> dict[str, Any]:
        assert engine[0] == "--rollout-external-engine-addrs"
        done.append(cell)
        return a_row(cell, late_of(cell), protocol)

    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    flags = ["--methods", "tis", "--staleness", "0,8", "--rates", "0.1,0.2"]
    flags += ["--choosing-seeds", "1-3", "--fresh-seeds", "4-5", "--rollouts", "20"]
    flags += ["--model", str(model), "--runs", str(tmp_path / "runs.jsonl")]
    monkeypatch.setattr(off_policy, "run", run)
    monkeypatch.setattr(Engine, "start", AsyncMock())
    monkeypatch.setattr("sys.argv", ["off_policy", "run", *flags])
    off_policy.main()
    assert len(done) == len(set(done)) == 2 * (3 * 2 + 2)
    assert {c.lr for c in done if c.seed >= 4} == {0.2}, "chosen by the fresh seeds' own rewards"
    off_policy.main()
    assert len(done) == 16, "a run that was done was run again"

    monkeypatch.setattr("sys.argv", ["off_policy", "table", "--dry", *flags])
    off_policy.main()
    tis = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["tis"])
    assert tis.split()[:4] == ["tis", "8", "0.200", "2"]
    assert float(tis.split()[6]) == pytest.approx(-0.016)
