"""Both sides of one collective: the learner and every engine of a wave. Either all come through it,
or it is said who did not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from pipeline.core.errors import LearnerLostError, WeightSyncError
from stages.publish.control import AnsweredError

# for engines to answer, when the others are through or the collective has broken
GRACE_SECONDS = 15.0
SLOWER = 4.0  # times as long as the first one through took is still no silence


class SilentError(WeightSyncError):
    """An engine gave no answer while the others did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A collective that not everybody came through."""

    learner: WeightSyncError | None
    engines: Mapping[str, WeightSyncError]  # by endpoint
    first: frozenset[str]  # engines that failed before anybody else, the learner included
    lost: LearnerLostError | None = None  # the learner is no more

    @property
    def unwell(self) -> dict[str, WeightSyncError]:
        """Engines that are dead or stuck: those that answered, if only to refuse, are not."""
        return {e: x for e, x in self.engines.items() if not isinstance(x, AnsweredError)}

    def reason(self, endpoint: str) -> WeightSyncError:
        """Why this engine has nothing of it: its own failure, the learner's, or another's."""
        found = self.engines.get(endpoint) or self.learner
        return found or next(iter(self.engines.values()))


async def together(
    engines: Mapping[str, Awaitable[None]],
    learner: Awaitable[None],
    hang_up: Callable[[], Awaitable[None]],
) -> Broken | None:
    """Runs all sides of a collective; None when all of them came through.

    When one fails, the learner's side is waited for (it has a time limit), `hang_up` takes the
    learner out, which ends the waiting of engines that wait for it, and what engines say within
    GRACE_SECONDS is heard. One that is silent long after others are through has failed. A learner
    that is lost needs not be taken out: its engines are heard, to know which of them are well.
    Raises what is no failure of a push."""
    calls = {endpoint: asyncio.ensure_future(call) for endpoint, call in engines.items()}
    mine = asyncio.ensure_future(learner)
    tasks = {mine, *calls.values()}
    try:
        await _until_broken(mine, calls.values())
        early = frozenset(e for e, call in calls.items() if _error(call) is not None)
        if all(task.done() and _error(task) is None for task in tasks):
            return None
        await asyncio.wait({mine})
        lost = error if isinstance(error := _error(mine), LearnerLostError) else None
        if lost is None:
            await hang_up()
        if waiting := [call for call in calls.values() if not call.done()]:
            await asyncio.wait(waiting, timeout=GRACE_SECONDS)
        return Broken(
            learner=None if lost else _weight_sync_error(mine),
            engines={e: x for e, call in calls.items() if (x := _failure(e, call)) is not None},
            first=early,
            lost=lost,
        )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            _error(task)  # seen, whatever it is


async def _until_broken(
    mine: asyncio.Future[None], calls: Collection[asyncio.Future[None]]
) -> None:
    """Until all are through, one has failed, or one is far behind the others."""
    now = asyncio.get_running_loop().time
    began, limit, pending = now(), None, {mine, *calls}
    while pending:
        done, pending = await asyncio.wait(
            pending, timeout=limit, return_when=asyncio.FIRST_COMPLETED
        )
        if not done or any(_error(task) is not None for task in done):
            return
        if limit is None and mine.done() and any(call.done() for call in calls):
            limit = max(GRACE_SECONDS, SLOWER * (now() - began))


def _failure(endpoint: str, call: asyncio.Future[None]) -> WeightSyncError | None:
    if not call.done():
        return SilentError(f"{endpoint} gave no answer in a broadcast that others are done with")
    return _weight_sync_error(call)


def _weight_sync_error(task: asyncio.Future[None]) -> WeightSyncError | None:
    error = _error(task)
    if error is not None and not isinstance(error, WeightSyncError):
        raise error
    return error


def _error(task: asyncio.Future[None]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None
