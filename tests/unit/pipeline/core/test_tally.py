"""Many like warnings: all of them in the file, few in the terminal, and nobody warns in a loop."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipeline.core.tally import Tally
from pipeline.telemetry.logs import EarlyLines, start_logging

logger = logging.getLogger("pipeline.tally")


@pytest.fixture
def terminal(tmp_path: Path) -> tuple[list[str], Path]:
    """What the terminal is told, and the run's log."""
    return [], tmp_path / "run.log"


def skip(num: int, *, at_once: bool, last: bool, terminal: tuple[list[str], Path]) -> list[str]:
    """The terminal's lines of so many skipped rows; every one is in the file."""
    said, log = terminal
    stop = start_logging(log, "info", lambda text, level: said.append(text))
    tally = Tally(logger, "row", "skipped")
    for i in range(num):
        tally.add(f"line {i}")
        if at_once:
            tally.say()
    tally.say(last=last)
    stop()
    assert log.read_text().count("skipped: line ") == num
    return said


def test_a_loop_ends_in_one_line(terminal: tuple[list[str], Path]) -> None:
    assert skip(512, at_once=False, last=True, terminal=terminal) == [
        "warning: 512 rows skipped: line 0; line 1; line 2; run.log names all"
    ]


def test_one_is_named_and_none_is_nothing(terminal: tuple[list[str], Path]) -> None:
    assert skip(1, at_once=True, last=True, terminal=terminal) == ["warning: 1 row skipped: line 0"]
    terminal[0].clear()
    terminal[1].unlink()
    assert skip(0, at_once=True, last=True, terminal=terminal) == []


def test_what_comes_one_by_one_is_said_at_once_and_then_ever_more_rarely(
    terminal: tuple[list[str], Path],
) -> None:
    said = skip(512, at_once=True, last=False, terminal=terminal)
    assert [line.split(":")[1] for line in said] == [
        " 1 row skipped",
        " 10 rows skipped so far",
        " 100 rows skipped so far",
    ]
    terminal[0].clear()
    terminal[1].unlink()
    said = skip(512, at_once=True, last=True, terminal=terminal)
    assert said[-1].startswith("warning: 512 rows skipped: ")


def test_lines_from_before_the_log_are_in_it_and_are_shown_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    handlers = list(logging.getLogger().handlers)
    with EarlyLines():
        tally = Tally(logger, "row", "skipped")
        tally.add("line 7")
        tally.say(last=True)
        logger.warning("be careful")
        stop = start_logging(tmp_path / "run.log", "info", lambda text, level: said.append(text))
        logger.warning("later")
    stop()
    early = capsys.readouterr().err.splitlines()
    assert early == ["warning: 1 row skipped: line 7", "warning: be careful"]
    assert said == ["warning: later"]
    log = [line.split(": ", 1)[1] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert log == ["skipped: line 7", "be careful", "later"]
    assert logging.getLogger().handlers == handlers
