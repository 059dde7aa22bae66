"""What a label means: the answers, any of which is right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

EXPECTED = 'text, a number, a list of such (any of them is right), or {"ground_truth": either}'


def accepted_answers(label: Any) -> list[str]:
    """The answers as text, at least one.

    Raises ValueError unless the label is text, a number, a list of these, or one of these under
    "ground_truth" (as verl's data have it)."""
    given = label.get("ground_truth") if isinstance(label, Mapping) else label
    answers = [_as_text(answer) for answer in (given if isinstance(given, list) else [given])]
    if not answers or None in answers:
        raise ValueError(
            f"the label is {label!r:.80}: expected {EXPECTED}. --label-key names its column"
        )
    return [answer for answer in answers if answer is not None]


def whole_number(answer: str) -> int:
    """The integer that `34`, `1,234` or `34.0` writes. Raises ValueError for any other text."""
    plain = answer.strip().replace(",", "")
    try:
        return int(plain)
    except ValueError:
        number = float(plain)
    if not number.is_integer():
        raise ValueError(f"{answer!r} is no whole number")
    return int(number)


def _as_text(answer: Any) -> str | None:
    """The answer as text; None for a value that is not an answer: a truth value, NaN, a null, blank
    text, an object."""
    if isinstance(answer, str):
        return answer if answer.strip() else None
    if isinstance(answer, bool) or not isinstance(answer, Real) or not math.isfinite(answer):
        return None
    return str(answer)
