"""How the rollout workers are, of what they report: their event loops, their logs, where groups
stand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.run.lookout import Blocked
from pipeline.run.watchdog import Awaited
from pipeline.workers.rollout_messages import LogLine, Report

logger = logging.getLogger(__name__)


class RolloutReports:
    """The latest of every worker, and the worst since somebody asked."""

    def __init__(self) -> None:
        self._lag: dict[str, float] = {}
        self._oldest: dict[int, Sequence[Awaited]] = {}  # groups, by worker
        self.on_blocked: Callable[[Blocked], None] = lambda news: logger.warning("%s", news)
        """Told of every loop that runs nothing. Set by whoever keeps records."""

    def take(self, worker: int, report: Report) -> None:
        for name, seconds in report.lag.items():
            if seconds is not None:
                self._lag[name] = max(seconds, self._lag.get(name, 0.0))
        self._oldest[worker] = report.oldest
        for line in report.lines:
            _log(worker, line)
        for news in report.blocked:
            self.on_blocked(Blocked(seconds=news.seconds, where=news.where, worker=worker))

    def forget(self, worker: int) -> None:
        """It is dead."""
        self._oldest.pop(worker, None)

    def lag(self) -> dict[str, float | None]:
        """The delay of event loops since this was last asked, in seconds: p50, p99 and max of the
        worker that was worst, in its worst second."""
        found, self._lag = self._lag, {}
        return {name: found.get(name) for name in ("p50", "p99", "max")}

    def standing(self) -> dict[int, Awaited]:
        """Where the oldest groups of every worker stand, by group index."""
        return {
            awaited.number: replace(awaited, where=f"{awaited.where}, in rollout worker {worker}")
            for worker, oldest in self._oldest.items()
            for awaited in oldest
            if awaited.number is not None
        }


def _log(worker: int, line: LogLine) -> None:
    extra = {"file_only": line.file_only, "terminal_only": line.terminal_only}
    shown = {key: True for key, value in extra.items() if value}
    said = logging.getLogger(line.logger)
    said.log(line.level, "%s (rollout worker %d)", line.text, worker, extra=shown)
