"""A paused scheduler that sleeps until it is told something.

Between /pause_generation and /continue_generation SGLang's scheduler asks its sockets again and
again, as fast as it can; --sleep-on-idle is for one that is idle, not for one that is paused. Where
engines and learner share a few cores, what is waited for is what that takes the cores from."""

from __future__ import annotations

import importlib
from typing import Any


def sleep_while_paused() -> None:
    """Called when SGLang's scheduler is defined. With --sleep-on-idle a paused one waits for a
    message, a second at most, between two looks."""
    scheduler: Any = importlib.import_module("sglang.srt.managers.scheduler").Scheduler
    recorded = scheduler._record_scheduler_state_for_paused_engine

    def record_and_sleep(self: Any) -> None:
        recorded(self)
        self.maybe_sleep_on_idle()

    scheduler._record_scheduler_state_for_paused_engine = record_and_sleep
