"""The score in what a judge said."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

# of a reply are read: a judge that rambles has its verdict at the end
_LAST_CHARACTERS = 20_000


def _refuse(word: str) -> Any:
    raise ValueError(word)


_DECODER = json.JSONDecoder(parse_constant=_refuse)  # NaN and Infinity are no scores


def read_score(reply: str, pattern: re.Pattern[str] | None, key: str) -> float | dict[str, Any]:
    """The last match's first group as a number; without a pattern the last JSON object that has a
    number at `key`, whole. What comes before </think> is not read.

    Raises ValueError where there is none."""
    text = reply.rpartition("</think>")[2][-_LAST_CHARACTERS:]
    if pattern is not None:
        said = [match[1] for match in pattern.finditer(text)]
        numbers = [n for n in map(_number, said) if n is not None]
        if not numbers:
            raise ValueError(f"--judge-score-pattern {pattern.pattern} finds no number")
        return numbers[-1]
    for found in reversed(list(_objects(text))):
        number = _number(found.get(key))
        if number is not None:
            return {**found, key: number}
    raise ValueError(f"no JSON object with a number at {key!r}")


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in the text that lie in no other."""
    place = text.find("{")
    while place >= 0:
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            yield value
        place = text.find("{", end)


def _number(value: Any) -> float | None:
    """The finite number that it is or writes."""
    if not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
