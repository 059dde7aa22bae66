"""One way to write numbers and times, and nobody writes them another way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.core.format import duration, number, percent

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (1234, "1,234"),
        (0.0, "0.000"),
        (0.1234, "0.123"),
        (0.00203, "0.00203"),
        (-4.52e-05, "-4.52e-05"),
        (1234.5, "1,234"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares() -> None:
    assert [percent(v) for v in (None, 0, 0.1234, 1)] == ["-", "0.0%", "12.3%", "100.0%"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0432, "43 ms"),
        (0.9996, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3600 * 3 + 720, "3 h 12 min"),
        (86400 * 2 + 3600 * 3, "2 d 03 h"),
    ],
)
def test_durations(value: float | None, text: str) -> None:
    assert duration(value) == text


def test_terminal_and_report_have_no_formats_of_their_own() -> None:
    pattern = re.compile(r"^def (number|percent|duration|seconds)\(", re.MULTILINE)
    found = [p for p in (ROOT / "pipeline").rglob("*.py") if pattern.search(p.read_text())]
    assert found == [ROOT / "pipeline/core/format.py"]
