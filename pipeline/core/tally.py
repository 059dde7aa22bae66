"""Warnings that come once an item: every one in the run's log, a few lines in the terminal."""

from __future__ import annotations

import logging

from pipeline.core.format import counted

NAMED = 3
AGAIN = 10  # the terminal hears of it again when there are so many times as many


class Tally:
    """Call `add` for what happened to an item, and `say` when the next one may be long in coming:
    at once for items that come one by one, after the loop for those that come in a row."""

    def __init__(self, logger: logging.Logger, noun: str, fate: str) -> None:
        """The words of '12 rows skipped': the noun is 'row', the fate is 'skipped'."""
        self._logger, self._noun, self._fate = logger, noun, fate
        self._first: list[str] = []
        self._next = 1  # the count at which the terminal hears of it
        self.count = 0

    def add(self, one: str) -> None:
        """Counts one item. `one`: which it is, and why."""
        self.count += 1
        if len(self._first) < NAMED:
            self._first.append(one)
        self._logger.warning("%s: %s", self._fate, one, extra={"file_only": True})

    def say(self, *, last: bool = False) -> None:
        """Tells the terminal, if there is something for the first time, or ten times as much as
        when it last heard of it. `last`: no more will come, so it hears of what is new to it."""
        if self.count >= self._next or (last and self.count * AGAIN > self._next):
            self._next = self.count * AGAIN
            so_far = "" if last or self.count == 1 else " so far"
            more = "" if self.count <= len(self._first) else "; run.log names all"
            self._logger.warning(
                "%s %s%s: %s%s",
                counted(self.count, self._noun),
                self._fate,
                so_far,
                "; ".join(self._first),
                more,
                extra={"terminal_only": True},
            )
