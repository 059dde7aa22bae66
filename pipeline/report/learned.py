"""What a run has learned, in words that hold for short runs, for rewards of any scale, and for
supervised ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.core.format import duration, number
from pipeline.report.summary import REWARD_WINDOW, History, reward_window, values
from pipeline.run.equal_rewards import advice


def what_was_learned(history: History, summary: Mapping[str, Any]) -> list[str]:
    """The sentences that say it."""
    name, first, last, num = _course(history, summary)
    if first is None:
        return []
    out = [f"Mean {name} {_from_to(first, last, num)}."]
    if summary["seconds_to_reward_0_9"] is not None:
        out.append(
            f"It reached 0.9 after {duration(summary['seconds_to_reward_0_9'])}"
            f" ({_trailing(num)}start-up included)."
        )
    if equal := summary.get("rollouts_with_equal_rewards"):
        out.append(_equal(history, equal))
    return out


def learned_tiles(history: History, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(value, label) for the head of the report."""
    name, first, last, num = _course(history, summary)
    window = reward_window(num)
    tiles = [
        (f"{number(first)} → {number(last)}", f"{name}, first and last {window}")
        if num > 1
        else (number(first), name)
    ]
    if summary["seconds_to_reward_0_9"] is not None:
        tiles.append((duration(summary["seconds_to_reward_0_9"]), "to reward 0.9"))
    return tiles


def _course(
    history: History, summary: Mapping[str, Any]
) -> tuple[str, float | None, float | None, int]:
    """What is followed, its first and last mean, and over how many rollouts it is known."""
    name = history.followed.removesuffix("_mean")
    num = len(values(history.train, history.followed))
    return name, summary[f"{name}_first"], summary[f"{name}_last"], num


def _from_to(first: float | None, last: float | None, num: int) -> str:
    if num == 1:
        return f"was {number(first)} in the only rollout"
    window = reward_window(num)
    rollouts = "rollout" if window == 1 else f"{window} rollouts"
    ending = "" if window == 1 else f" {window}"
    return f"went from {number(first)} (first {rollouts}) to {number(last)} (last{ending})"


def _trailing(num: int) -> str:
    return f"mean of {min(REWARD_WINDOW, num)} rollouts, " if num > 1 else ""


def _equal(history: History, equal: int) -> str:
    rows = [row for row in history.train if row.get("rewards_equal")]
    if equal < len(history.train):
        return (
            f"In {equal} of {len(history.train)} rollouts all rewards (of a group) were equal:"
            " these taught nothing."
        )
    return (
        "Nothing was learned from rewards: in every rollout all of them (of a group) are equal;"
        f" {advice(rows[-1])}"
    )
