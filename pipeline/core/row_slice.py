"""`path@[a:b]`: some of the rows of a prompt file. The checks at load and the source read it with
this one function."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.core.errors import DataError

_SLICE = re.compile(r"(?P<path>.+)@\[\s*(?P<start>-?\d+)?\s*:\s*(?P<stop>-?\d+)?\s*\]")


def split_slice(spec: str) -> tuple[Path, slice]:
    """`path@[a:b]` -> (path, slice(a, b)), by Python's rules: either number may be left out or
    negative. Without a slice all rows are meant.

    Raises DataError for a malformed slice, and for one that is empty whatever the file holds."""
    if "@[" not in spec and not spec.endswith("]"):
        return Path(spec).expanduser(), slice(None)
    match = _SLICE.fullmatch(spec)
    if match is None:
        raise DataError(
            f"{spec}: cannot read the slice; expected path@[a:b] with row numbers a <= row < b,"
            " either may be left out, or negative to count from the end, e.g. data.jsonl@[0:1000]"
        )
    start, stop = (int(n) if n else None for n in (match["start"], match["stop"]))
    if start is not None and stop is not None and (start < 0) == (stop < 0) and start >= stop:
        raise DataError(f"{spec}: rows {start} to {stop} are none; expected a < b")
    return Path(match["path"]).expanduser(), slice(start, stop)
