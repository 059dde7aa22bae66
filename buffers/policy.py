"""The decisions that a run's flags ask for: the buffer makes them, an audit of the run
makes them again."""

from __future__ import annotations

from collections.abc import Iterable

from configs.schema import AsyncConfig
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.decisions import Decisions
from pipeline.schedule.replay_pool import Entry
from pipeline.schedule.selectors import ADMISSION, make_selector


def make_decisions(
    config: AsyncConfig, clock: RolloutClock, *, seed: int, replayable: Iterable[Entry] = ()
) -> Decisions:
    """The `Decisions` that the flags ask for. `seed` is for the random selectors; `replayable`: the
    groups that were trained on before a resume and may be trained on again."""
    selector = (
        ADMISSION
        if config.fixed_staleness
        else make_selector(
            config.buffer_selector, seed=seed, exponent=config.buffer_priority_exponent
        )
    )
    return Decisions(
        clock,
        selector=selector,
        max_times_sampled=config.max_times_sampled,
        stale_policy=config.stale_policy,
        lockstep=config.fixed_staleness,
        replayable=replayable,
    )
