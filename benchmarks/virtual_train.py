"""train_async.py, but time is simulated: where everybody waits, it jumps to the next moment at
which somebody wants to go on, and computing takes none of it. What comes out is what the pipeline's
decisions cost on an ideal machine, whoever else uses this one. For --mock only: a real engine's
time is its own."""

from __future__ import annotations

import asyncio
import selectors
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")


class JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing that only time would bring."""

    def __init__(self) -> None:
        super().__init__()
        self.now = monotonic()
        self.threads = 0  # that work for the loop: they take real time, and none of ours

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if self.threads or timeout is None:
            return super().select(None if timeout is None else 0.001)
        self.now += max(0.0, timeout)
        return []


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self, selector: JumpingSelector) -> None:
        super().__init__(selector)
        self._jumping = selector

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        self._jumping.threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._came_back)
        return future

    def _came_back(self, future: asyncio.Future[Any]) -> None:
        self._jumping.threads -= 1


def run_jumping(work: Coroutine[Any, Any, T], selector: JumpingSelector | None = None) -> T:
    """What asyncio.run does, in simulated time."""
    jumping = selector or JumpingSelector()
    with asyncio.Runner(loop_factory=lambda: JumpingLoop(jumping)) as runner:
        return runner.run(work)


def main() -> None:
    import uvloop

    import pipeline.core.time
    import train_async

    selector = JumpingSelector()

    def run(work: Coroutine[Any, Any, T]) -> T:
        return run_jumping(work, selector)

    uvloop.run = run  # type: ignore[assignment]
    pipeline.core.time.monotonic = lambda: selector.now
    train_async.main()


if __name__ == "__main__":
    sys.path[:1] = [str(ROOT)]
    assert "--mock" in sys.argv, "simulated time is for --mock"
    main()
