"""`python -m pipeline buffer RUN_DIR ...`: what lies in a run's buffer, and what became of every
group."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
import pytest

from buffers.replay_buffer import ReplayBuffer
from configs.schema import AsyncConfig
from pipeline.__main__ import main
from pipeline.core.types import Group, Sample, Status, VersionSpan
from pipeline.schedule.clock import RolloutClock


@pytest.fixture
async def run(tmp_path: Path) -> Path:
    """Two groups trained in rollout 0, one waiting, one filtered; as a crash leaves them."""
    clock = RolloutClock(
        rollout_batch_size=2, async_buffer_size=1, update_weights_interval=1, num_rollout=5
    )
    buffer = ReplayBuffer(tmp_path / "buffer", AsyncConfig(async_buffer_size=1), clock)
    for index in range(4):
        admission = buffer.try_admit()
        assert admission is not None
        if index == 3:
            buffer.discard(index, "filtered: zero_std")
            continue
        sample = Sample(
            index=index,
            prompt="1 + 1 =",
            tokens=[7, 8, 9, 4],
            response="two",
            response_length=3,
            reward=float(index),
            status=Status.COMPLETED,
            loss_mask=[1, 0, 1],
            rollout_log_probs=[-0.5, 0.0, -1.25],
            weight_versions=[VersionSpan(0, 0, 1), VersionSpan(1, 2, 3)],
        )
        await buffer.put(
            Group(
                group_index=index,
                deadline=admission.deadline,
                admitted_version=0,
                samples=(sample,),
            )
        )
        if index == 1:
            await _nothing(buffer)
    buffer._journal.flush()
    (tmp_path / "metrics.jsonl").write_text("")
    return tmp_path


async def _nothing(buffer: ReplayBuffer) -> None:
    buffer._clock.version_at = lambda rollout_id: 1  # type: ignore[method-assign]  # tokens of version 1 are not from the future
    await buffer.take(0)


def test_the_ledger_says_what_became_of_every_group(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["buffer", str(run), "ledger", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert [g["fate"] for g in out["groups"]] == ["trained", "trained", "pending", "removed"]
    assert out["groups"][1]["consumed"] == [{"rollout": 0, "policy_version": 1}]
    assert out["groups"][3]["reason"] == "filtered: zero_std"
    assert (out["totals"]["lost"], out["totals"]["duplicated"]) == (0, 0)
    assert main(["buffer", str(run), "ledger"]) == 0
    assert "rollout 0 at version 1" in capsys.readouterr().out


def test_list_show_and_verify(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["buffer", str(run)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["buffer", str(run), "list", "--min-reward", "1.5"]) == 0
    assert "group      2" in capsys.readouterr().out
    assert main(["buffer", str(run), "show", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[3].startswith("tokens: token ids alone: ") and "config.yaml" in said[3]
    assert [line.split() for line in said[5:]] == [
        ["8", "1", "-0.5000", "0"],
        ["9", "0", "0.0000", "-"],
        ["4", "1", "-1.2500", "1"],
    ]
    assert main(["buffer", str(run), "show"]) == 0
    assert "of group 2:" in capsys.readouterr().out, "the newest"
    assert main(["buffer", str(run), "verify"]) == 0
    assert "3 groups, all checksums right" in capsys.readouterr().out


def test_damage_is_named_with_file_and_place(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (segment,) = (run / "buffer").glob("segment-*.arrow")
    data = bytearray(segment.read_bytes())
    data[-20] ^= 255
    segment.write_bytes(data)
    assert main(["buffer", str(run), "verify"]) != 0
    captured = capsys.readouterr()
    assert (
        "BufferCorruption" in captured.err
        and str(segment) in captured.err
        and "2 groups, then damage" in captured.out
    )


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_export(run: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = run / f"out.{suffix}"
    assert main(["buffer", str(run), "export", str(target)]) == 0
    rows = (
        pyarrow.parquet.read_table(target).to_pylist()
        if suffix == "parquet"
        else [json.loads(x) for x in target.read_text().splitlines()]
    )
    assert [r["tokens"] for r in rows] == [[7, 8, 9, 4]] * 3
    assert [r["reward"] for r in rows] == [0.0, 1.0, 2.0]
    assert [r["rollout_id"] for r in rows] == [0, 0, None]
    assert [r["advantage"] for r in rows] == [None] * 3
    said = capsys.readouterr().out
    assert "advantages of 1 of them are empty: no rollout has trained on them" in said
    assert "advantages of 2 of them are empty: " in said and "config.yaml" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "77"], "group 77 does not lie"),
        (["show", "2", "5"], "samples 0..0"),
        (["export", "x.csv"], ".parquet or .jsonl"),
    ],
)
def test_mistakes(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["buffer", str(run), *words]) != 0
    assert says in capsys.readouterr().err
