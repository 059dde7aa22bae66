"""--num-rollout-workers: what is refused beside it, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.command_line.loader import load_config
from pipeline.core.errors import ConfigError
from pipeline.wiring.foreign_flags import FAMILIES

ROWS = '{"prompt": "1 + 1 =", "label": "2"}\n'


def load(*flags: str) -> None:
    load_config(["--mock", "--num-rollout-workers", "2", *flags], families=FAMILIES)


def test_workers_alone_are_fine() -> None:
    load()
    load("--dynamic-sampling-filter-path", "zero_std", "--rollout-num-gpus", "2")


def test_what_makes_whole_rollouts_stays_in_the_driver(tmp_path: Path) -> None:
    function = tmp_path / "f.py"
    function.write_text("def generate_rollout(args, rollout_id, data_buffer, evaluation): ...")
    with pytest.raises(ConfigError, match="--num-rollout-workers 2 with --rollout-function-path"):
        load("--rollout-function-path", str(function))


def test_given_answers_are_not_generated(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(ROWS)
    with pytest.raises(ConfigError, match=r"--num-rollout-workers 2 with --loss-type sft_loss"):
        load("--loss-type", "sft_loss", "--prompt-data", str(rows))


@pytest.mark.parametrize("flag", ["--num-rollout-workers", "--rollout-worker-restarts"])
def test_numbers_below_zero_are_refused(flag: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag} -1: expected at least 0"):
        load_config(["--mock", flag, "-1"], families=FAMILIES)
