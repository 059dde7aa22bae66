"""The figures of an evaluation's record, for people to read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.core.format import number


def with_interval(record: Mapping[str, Any], figure: str) -> str:
    """`0.5 [0.41, 0.59]`: the figure and the bounds of its 95% confidence interval, where these are
    known."""
    low, high = record.get(f"{figure}_low"), record.get(f"{figure}_high")
    bounds = "" if low is None or high is None else f" [{number(low)}, {number(high)}]"
    return number(record.get(figure)) + bounds


def passes(record: Mapping[str, Any]) -> list[int]:
    """The k of which it has pass@k, in order."""
    found = (re.fullmatch(r"pass_at_(\d+)", name) for name in record)
    return sorted(int(match[1]) for match in found if match)


def last_pass(record: Mapping[str, Any]) -> str:
    """`pass@8 0.7 [0.6, 0.78]` of the largest k; nothing where every prompt has one sample."""
    beyond = [k for k in passes(record) if k > 1]
    return f"pass@{beyond[-1]} {with_interval(record, f'pass_at_{beyond[-1]}')}" if beyond else ""
