"""Rewards that are all equal teach nothing: the run says so while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.core.format import number, percent

FIRST_WARNING = 3  # rollouts in a row; then whenever the row is twice as long
_MANY_TRUNCATED = 0.5


class EqualRewards:
    """Is given every train record. Pure."""

    def __init__(self, *, within_groups: bool) -> None:
        """`within_groups`: advantages compare a reward with those of its own group only, so rewards
        that are equal within every group teach nothing."""
        self._within_groups = within_groups
        self._in_a_row, self._next_warning = 0, FIRST_WARNING

    def add(self, record: Mapping[str, Any]) -> bool:
        """Did this rollout's rewards teach nothing?"""
        low, high = record.get("reward_min"), record.get("reward_max")
        equal = low is not None and (
            low == high or (self._within_groups and record.get("zero_std_fraction") == 1)
        )
        if not equal:
            self._in_a_row, self._next_warning = 0, FIRST_WARNING
            return False
        self._in_a_row += 1
        return True

    def warning(self, record: Mapping[str, Any]) -> str | None:
        """What is to be said after this record, which `add` was given before."""
        if self._in_a_row < self._next_warning:
            return None
        self._next_warning = 2 * self._in_a_row
        low, high = record["reward_min"], record["reward_max"]
        which = (
            f"all rewards are equal ({number(low)})"
            if low == high
            else "all rewards of a group are equal, in every group"
        )
        return f"in the last {self._in_a_row} rollouts {which}: {advice(record)}"


def advice(record: Mapping[str, Any]) -> str:
    """What follows from equal rewards, and what to look at."""
    truncated = record.get("truncated_fraction") or 0.0
    cut = (
        f" (and {percent(truncated)} of the responses are cut off by --rollout-max-response-len)"
        if truncated >= _MANY_TRUNCATED
        else ""
    )
    return (
        f"the rewards teach nothing, whatever the loss says. Read some answers{cut}: `python -m"
        " pipeline buffer RUN_DIR show GROUP`. Do the labels (--label-key) and the scorer fit"
        " them? Are the prompts all too hard or too easy? Is the temperature above 0 and"
        " --n-samples-per-prompt above 1?"
    )
