"""Equal rewards are warned of while the run goes on."""

from __future__ import annotations

from typing import Any

from pipeline.run.equal_rewards import EqualRewards


def row(low: float | None, high: float | None, flat: float = 1.0, cut: float = 0.0) -> Any:
    return {
        "reward_min": low,
        "reward_max": high,
        "zero_std_fraction": flat,
        "truncated_fraction": cut,
    }


def warnings(watch: EqualRewards, rows: list[Any]) -> list[int]:
    """After which records there is a warning."""
    said = []
    for number, record in enumerate(rows, start=1):
        watch.add(record)
        if watch.warning(record) is not None:
            said.append(number)
    return said


def test_three_in_a_row_are_told_of_and_again_when_twice_as_many() -> None:
    assert warnings(EqualRewards(within_groups=True), [row(0, 0)] * 25) == [3, 6, 12, 24]


def test_a_rollout_that_teaches_begins_the_count_anew() -> None:
    rows = [row(0, 0), row(0, 0), row(0, 1, flat=0.5), *[row(0, 0)] * 4]
    assert warnings(EqualRewards(within_groups=True), rows) == [6]


def test_groups_that_differ_from_each_other_teach_only_who_compares_them() -> None:
    groups = [row(0, 1, flat=1.0)] * 3
    assert warnings(EqualRewards(within_groups=True), groups) == [3]
    assert warnings(EqualRewards(within_groups=False), groups) == []


def test_without_any_reward_there_is_nothing_to_say() -> None:
    assert warnings(EqualRewards(within_groups=True), [row(None, None)] * 9) == []


def test_the_warning_says_what_to_look_at() -> None:
    watch, record = EqualRewards(within_groups=True), row(0.0, 0.0, cut=0.9)
    for _ in range(3):
        watch.add(record)
    said = watch.warning(record)
    assert said is not None
    assert "in the last 3 rollouts all rewards are equal (0.000)" in said
    assert "--label-key" in said and "90.0% of the responses are cut off" in said
