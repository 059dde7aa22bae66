"""Evaluations as a table of plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core.eval_figures import passes, with_interval
from pipeline.core.format import number, percent


def evaluation_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a data set, below a line of titles; then what went wrong. `records`: eval records as
    in metrics.jsonl."""
    columns = sorted({k for record in records for k in passes(record)})
    titles = ["data set", "reward", *(f"pass@{k}" for k in columns)]
    titles += ["prompts", "samples", "failed", "truncated", "tokens", "version"]
    rows = [_row(record, columns) for record in records]
    widths = [max(map(len, cells)) for cells in zip(titles, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (titles, *rows)
    ]
    if any(record.get("reward_mean_low") is not None for record in records):
        lines.append("[low, high]: 95% confidence, over prompts")
    for record in records:
        said = record.get("error") or record.get("first_failure")
        if said:
            lines.append(f"{record['name']}: {said}")
    return lines


def _row(record: Mapping[str, Any], columns: Sequence[int]) -> list[str]:
    return [
        str(record["name"]),
        with_interval(record, "reward_mean"),
        *(with_interval(record, f"pass_at_{k}") for k in columns),
        number(record.get("num_prompts")),
        number(record.get("num_samples")),
        number(record.get("num_failed")),
        percent(record.get("truncated_fraction")),
        number(record.get("response_length_mean")),
        versions(record),
    ]


def versions(record: Mapping[str, Any]) -> str:
    """The policy versions that its tokens come from."""
    low, high = record.get("policy_version_min"), record.get("policy_version_max")
    if low == -1:  # no token was generated
        return "-"
    return number(low) if low == high else f"{number(low)} to {number(high)}"
