"""Whoever comes from slime is told where a flag that was left out means something else here."""

from __future__ import annotations

from pathlib import Path

from configs.command_line.loader import load_config
from configs.command_line.slime_defaults import SLIMES, _ours
from configs.rules.user_source import source_text
from pipeline.wiring.foreign_flags import FAMILIES

SLIMES_FLAG = "--use-distributed-post"


def told(*words: str) -> list[str]:
    notes = load_config(["--mock", *words], FAMILIES).notes
    return [note for note in notes if note.startswith("other defaults than slime's: ")]


def test_every_default_that_is_told_differs() -> None:
    assert {name for name, theirs in SLIMES.items() if _ours(name) == theirs} == set()


def test_who_does_not_come_from_slime_is_told_nothing() -> None:
    assert told() == told("--accumulate-allreduce-grads-in-fp32") == []


def test_a_flag_of_slimes_is_enough_and_only_what_was_left_out_is_told() -> None:
    (all_of_them,) = told(SLIMES_FLAG)
    assert [name for name in SLIMES if f"--{name} is" not in all_of_them] == []
    (fewer,) = told(SLIMES_FLAG, "--input-key", "input", "--rollout-skip-special-tokens", "false")
    assert "--rollout-shuffle is on (slime: off)" in fewer
    assert "--input-key" not in fewer and "skip-special" not in fewer


def test_a_function_that_imports_slime_is_enough(tmp_path: Path) -> None:
    reward = tmp_path / "rewards.py"
    line = "async def reward_func(args, sample, **kwargs): return 1.0\n"
    reward.write_text(line)
    assert told("--custom-rm-path", str(reward)) == []
    reward.write_text(f"from slime.utils.types import Sample\n{line}")
    for name in ("", ":reward_func"):
        assert len(told("--custom-rm-path", f"{reward}{name}")) == 1


def test_what_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    for spec in ("~", "~0.py", "~0/mine.py:f", "nowhere.f", f"{tmp_path}/nowhere.py", ".py"):
        assert source_text(spec) == ""
