"""The deadline of an episode: late work is ended, and the error says at which line it stood."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.core.awaits import where_it_stands
from pipeline.core.protocols import Reward
from pipeline.core.tally import Tally
from pipeline.core.types import Sample, Status

logger = logging.getLogger(__name__)
T = TypeVar("T")
# what is late has this long to give back what it holds; then nobody waits for it any more
GRACE_SECONDS = 5.0
_LEFT_ALONE = Tally(
    logger, "episode", "left alone: over the deadline, and it does not end when it is cancelled"
)


class EpisodeTimeoutError(TimeoutError):
    """An episode was not over in time. A sample with it is FAILED: generated again, or given up."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """How many seconds an episode may take (None: no deadline), and the flag that sets it."""

    seconds: float | None = None
    flag: str = "--episode-timeout-seconds"

    async def within(
        self, work: Coroutine[Any, Any, T], *, grace_seconds: float = GRACE_SECONDS
    ) -> T:
        """The result of `work`; raises EpisodeTimeoutError, with the line at which it stood, when
        it is late.

        Late work is cancelled; work that ignores that for `grace_seconds` is left alone."""
        if self.seconds is None:
            return await work
        task = asyncio.ensure_future(work)
        task.add_done_callback(_seen)
        try:
            await asyncio.wait({task}, timeout=self.seconds)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        if task.done():
            return task.result()
        stood = where_it_stands(task)
        await _end(task, grace_seconds)
        raise EpisodeTimeoutError(
            f"not done after {self.seconds:g} s ({self.flag}): it was at {stood}"
        )

    async def score(self, reward: Reward, samples: Sequence[Sample]) -> None:
        """Scores a group. Samples without a score at the deadline are FAILED; the others keep
        theirs."""
        try:
            await self.within(_score(reward, samples))
        except EpisodeTimeoutError as late:
            for sample in samples:
                if sample.status is not Status.FAILED and sample.reward is None:
                    sample.status = Status.FAILED
                    sample.error = f"{type(late).__name__}: {late}"


async def _end(task: asyncio.Task[Any], grace_seconds: float) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=grace_seconds)
    if not task.done():
        _LEFT_ALONE.add(where_it_stands(task))
        _LEFT_ALONE.say()


def is_late(sample: Sample) -> bool:
    """Did the sample fail because its episode was over its deadline?"""
    return (sample.error or "").startswith(f"{EpisodeTimeoutError.__name__}:")


async def _score(reward: Reward, samples: Sequence[Sample]) -> None:
    await reward(samples)


def _seen(task: asyncio.Task[Any]) -> None:
    """Looks at what the task raised, so that asyncio does not complain: nobody waits for it any
    more."""
    if not task.cancelled():
        task.exception()
