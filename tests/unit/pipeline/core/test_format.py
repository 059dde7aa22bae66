"""One way to write numbers and times, and nobody writes them another way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        (24.955, "25.0"),
        (99.96, "100"),
        (9.996, "10.0"),
        (1.0, "1.00"),
        (0.9996, "1.00"),
        (0.09996, "0.100"),
        (-2.5, "-2.50"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares() -> None:
    assert [percent(v) for v in (None, 0, 0.1234, 1)] == ["-", "0.0%", "12.3%", "100.0%"]


@given(st.floats(1e-9, 1e9))
def test_a_number_has_three_significant_digits_or_is_whole(value: float) -> None:
    said = number(value).replace(",", "")
    assert float(said) == pytest.approx(value, rel=0.0051)
    digits = said.split("e")[0].replace(".", "").lstrip("0")
    assert len(digits) <= 3 or said.isdigit()


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


# what an f-string makes of a number: {x:.3f}, {x:,}, {x:.2g} s
OWN_FORMAT = re.compile(r":(?:,|,?\.\d[fg])\}|%\.\d[fg]")
# the ticks and coordinates of charts, the length of what is cut out of a text, the format itself
ELSEWHERE = {"core/format.py", "report/svg.py", "run/samples.py"}


def test_what_is_said_in_the_terminal_or_the_report_is_formatted_here() -> None:
    found = {
        f"{path.relative_to(ROOT / 'pipeline')}:{number}"
        for path in (ROOT / "pipeline").rglob("*.py")
        if str(path.relative_to(ROOT / "pipeline")) not in ELSEWHERE
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if OWN_FORMAT.search(line)
    }
    assert found == set()
