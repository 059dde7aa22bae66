"""Dynamic sampling filters: built in and the user's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from pipeline.core.types import Sample
from stages.filter import DynamicFilterOutput, build_filter, filter_zero_std_groups

ARGS = SimpleNamespace(reward_key=None, least=2)


def rewarded(*rewards: Any) -> list[Sample]:
    return [Sample(reward=r) for r in rewards]


def test_no_filter_keeps_everything() -> None:
    assert build_filter(None, ARGS)(rewarded(1.0, 1.0)) == DynamicFilterOutput(keep=True)


@pytest.mark.parametrize(
    ("rewards", "keep"),
    [((1.0, 1.0, 1.0), False), ((0.0, 0.0), False), ((1.0, 0.0), True), ((0.5,), False)],
)
def test_zero_std(rewards: tuple[float, ...], keep: bool) -> None:
    assert build_filter("zero_std", ARGS)(rewarded(*rewards)) == DynamicFilterOutput(
        keep=keep, reason=None if keep else "zero_std"
    )


def test_zero_std_looks_at_the_entry_that_is_trained_on() -> None:
    samples = rewarded({"score": 1.0, "style": 0.1}, {"score": 1.0, "style": 0.2})
    assert not filter_zero_std_groups(ARGS, samples).keep
    assert filter_zero_std_groups(SimpleNamespace(reward_key="style"), samples).keep


def test_a_users_filter_gets_args_and_samples(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from stages.filter import DynamicFilterOutput\ndef keep(args, samples, **kwargs): return"
        " len(samples) >= args.least\ndef worded(args, samples, **kwargs): return"
        " DynamicFilterOutput(keep=False, reason='dull')\ndef silent(args, samples, **kwargs):"
        " pass\n"
    )
    plain = build_filter(str(path), ARGS)
    assert plain(rewarded(1.0, 1.0)) == DynamicFilterOutput(keep=True)
    assert plain(rewarded(1.0)) == DynamicFilterOutput(keep=False, reason=str(path))
    assert build_filter(f"{path}:worded", ARGS)(rewarded(1.0)) == DynamicFilterOutput(
        keep=False, reason="dull"
    )
    with pytest.raises(
        ConfigError, match="answered None: expected True, False or DynamicFilterOutput"
    ):
        build_filter(f"{path}:silent", ARGS)(rewarded(1.0))
    with pytest.raises(ConfigError, match="absent"):
        build_filter(f"{path}:absent", ARGS)


def test_an_answer_is_open_for_attributes_and_subclasses() -> None:
    class Mine(DynamicFilterOutput):
        pass

    answer = Mine(False, "dull")
    answer.keep_when_insufficient = True
    assert (answer.keep, answer.reason, answer.keep_when_insufficient) == (False, "dull", True)


@pytest.mark.parametrize("reward", [{"right": 1.0}, "good", [1.0]])
def test_zero_std_says_so_where_there_is_no_number(reward: Any) -> None:
    with pytest.raises(ConfigError, match=r"zero_std compares numbers.*--reward-key"):
        build_filter("zero_std", ARGS)(rewarded(reward, reward))
