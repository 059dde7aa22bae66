"""From a run to an exit code: expected errors as one message, unexpected ones with their
traceback."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from pipeline.core.errors import SlipstreamError


class NothingToDo(Exception):  # noqa: N818
    """Nothing is left to train. This is not an error: its words are shown, and the exit code is
    0."""


class Ending(Protocol):
    """A run that has begun, or has ended."""

    interrupted_by: int | None  # signal number

    def end_now(self) -> None:
        """Ends whatever is still up, at once."""


R = TypeVar("R", bound=Ending)


def run_to_end(train: Callable[[R], Awaitable[None]], make: Callable[[], R]) -> int:
    """Builds the run and trains, or whatever `train` does with it, on a uvloop event loop; returns
    the exit code.

    0: done; 1: a fault; 2: bad input; 128 + n: ended by signal n."""
    import uvloop

    collect_rarely()
    runners: list[R] = []

    async def whole() -> None:
        try:
            runner = make()
        except NothingToDo as words:
            print(words, flush=True)
            return
        runners.append(runner)
        await train(runner)

    try:
        uvloop.run(whole())
    except BaseException as error:
        for runner in runners:
            runner.end_now()
        return _explain(error, runners)
    return _signal_code(runners)


def collect_rarely() -> None:
    """Raises the thresholds of the cycle collector. Thousands of samples are alive at once and die
    by their reference counts; at the default thresholds the collector goes through all of them
    every few answers, which takes half of the CPU time of generation
    (benchmarks/orchestration.py)."""
    gc.set_threshold(1_000_000, 20, 20)


def _signal_code(runners: Sequence[Ending]) -> int:
    number = runners[0].interrupted_by if runners else None
    return 128 + number if number else 0


def _explain(error: BaseException, runners: Sequence[Ending]) -> int:
    from pipeline.run.disk_full import is_disk_full
    from pipeline.run.runner import leaves
    from pipeline.run.shutdown import StopRequested

    causes = leaves(error)
    if runners and all(isinstance(e, StopRequested) for e in causes):
        return _signal_code(runners)
    expected = [e for e in causes if isinstance(e, SlipstreamError) or is_disk_full(e)]
    if not expected or len(expected) < len(causes):
        traceback.print_exception(error)
    for line in dict.fromkeys(f"{type(e).__name__}: {e}" for e in expected):
        print(line, file=sys.stderr)
    return getattr(expected[0], "exit_code", 1) if expected else 1
