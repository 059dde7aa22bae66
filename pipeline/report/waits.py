"""The report's account of when nothing was trained for long, and of who was awaited."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from pipeline.core.format import counted, duration, number
from pipeline.run.record_file import Record

_LAST = 20


def wait_list(rows: Sequence[Record]) -> str:
    """The last of the waits, in order."""
    return "".join(f"<p>{escape(_sentence(row))}</p>" for row in rows[-_LAST:])


def _sentence(row: Record) -> str:
    begin = f"After {duration(row.get('wall_seconds'))}: {duration(row.get('seconds'))}"
    begin += _dropped(row.get("dropped") or {})
    awaited = [_one(each) for each in row.get("awaited") or ()]
    if not awaited:
        return f"{begin} at '{row.get('stage')}', at {row.get('where')}"
    more = row.get("num_awaited", 0) - len(awaited)
    rest = [f"and {more} more"] if more > 0 else []
    return f"{begin} at '{row.get('stage')}', for {'; '.join([*awaited, *rest])}"


def _dropped(dropped: Record) -> str:
    """', 12 groups dropped (12 by --a-flag f.py: 8 dull, 4 long),', or nothing."""
    if not dropped:
        return ""
    causes = [
        f"{number(cause['num_groups'])} by {cause['flag']}: "
        + ", ".join(f"{number(n)} {reason}" for reason, n in cause["reasons"].items())
        for cause in dropped["causes"]
    ]
    return f", {counted(dropped['num_groups'], 'group')} dropped ({'; '.join(causes)}),"


def _one(awaited: dict[str, Any]) -> str:
    who = f"{awaited.get('kind')} {awaited.get('number')}"
    seconds = duration(awaited.get("seconds"))
    return f"{who}: {awaited.get('stage')} for {seconds}, at {awaited.get('where')}"
