"""--num-epoch: counted from the data, and what goes before what."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.command_line.dump import dump_config
from configs.command_line.loader import load_config
from configs.schema import Config
from pipeline.core.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ten.jsonl").write_text('{"prompt": "p"}\n\n' * 10)
    pq.write_table(pa.table({"prompt": ["p"] * 12}), tmp_path / "twelve.parquet")
    return tmp_path


def load(data: str, *more: str) -> Config:
    scorer = () if data.startswith("reasoning_gym:") else ("--rm-type", "random")
    base = ["--mock", "--rollout-batch-size", "4", "--prompt-data", data]
    return load_config([*base, *scorer, *more])


@pytest.mark.parametrize(
    ("data", "flags", "expected"),
    [
        ("ten.jsonl", "--num-epoch 1", 2),
        ("ten.jsonl", "--num-epoch 3", 6),
        ("ten.jsonl@[-5:]", "--num-epoch 3", 3),
        ("twelve.parquet", "--num-epoch 1", 3),
        ("reasoning_gym:chain_sum?size=9", "--num-epoch 2", 4),
        # with replay a rollout takes half as many new prompts
        ("ten.jsonl", "--num-epoch 1 --max-times-sampled 2", 5),
        ("ten.jsonl", "--num-epoch 1 --num-rollout 7", 7),
        ("ten.jsonl", "--num-rollout 7 --num-epoch 1", 7),
    ],
)
def test_an_epoch_has_as_many_rollouts_as_its_prompts_fill(
    folder: Path, data: str, flags: str, expected: int
) -> None:
    config = load(data, *flags.split())
    assert config.run.num_rollout == expected
    assert config.run.num_epoch is None


def test_the_number_of_rollouts_goes_first_and_that_is_said(folder: Path) -> None:
    (note,) = load("ten.jsonl", "--num-epoch", "3", "--num-rollout", "7").notes
    assert "--num-epoch 3 (--num-rollout 7 says how long the run is)" in note


def test_a_run_that_goes_on_may_be_given_more_epochs(folder: Path) -> None:
    file = folder / "was.yaml"
    file.write_text(dump_config(load("ten.jsonl", "--num-epoch", "1")))
    assert load_config(["--config", str(file)]).run.num_rollout == 2
    assert load_config(["--config", str(file), "--num-epoch", "2"]).run.num_rollout == 4


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("ten.jsonl@[:3]", "has 3 prompts, fewer than the 4 of a rollout"),
        ("reasoning_gym:chain_sum", "never ends; add size=1000"),
    ],
)
def test_data_that_fill_no_rollout_or_never_end_are_refused(
    folder: Path, data: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^--num-epoch 1: .*{says}"):
        load(data, "--num-epoch", "1")


def test_without_prompts_of_a_file_nobody_can_count(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--num-epoch 2 without --prompt-data"):
        load_config(["--mock", "--num-epoch", "2"])
