"""--load-debug-rollout-data: a buffer that hands kept rollouts to a learner without engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal, NoReturn

from buffers.dump import KeptRollout
from buffers.statistics import BufferStatistics
from pipeline.core.encoded_group import EncodedGroup
from pipeline.core.errors import DataError
from pipeline.core.types import Admission, Group
from pipeline.schedule.clock import RolloutClock


class KeptRollouts:
    """Implements `pipeline.core.protocols.Buffer`; nothing is ever admitted."""

    def __init__(self, read: Callable[[int], KeptRollout], clock: RolloutClock) -> None:
        self._read, self._clock = read, clock
        self._num_taken = self._num_replayed = 0

    async def admit(self) -> Admission:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    def recall(
        self, group_index: int, *, under_way: bool = False
    ) -> Literal["complete", "discarded"] | None:
        return None

    def rewind(self, restored_from: str | None) -> None:
        """Rollouts are read by their number, which the clock has."""

    async def put(self, group: Group) -> None:
        self._nothing_generates()

    async def put_encoded(self, group: EncodedGroup) -> None:
        self._nothing_generates()

    def discard(self, group_index: int, reason: str) -> None:
        self._nothing_generates()

    async def take(self, rollout_id: int) -> list[Group]:
        """The groups of the kept rollout, in the order in which they were trained on.

        Raises DataError when they are not as many as a rollout of this run takes.
        """
        take = self._read(rollout_id)
        fresh = sum(g.times_sampled == 1 for g in take.groups)
        if fresh != self._clock.batch_size:
            raise DataError(
                f"--load-debug-rollout-data: rollout {rollout_id} has {fresh} groups that are"
                f" trained on for the first time, this run takes {self._clock.batch_size}: set"
                " --rollout-batch-size (and --samples-per-insert) as in the run that kept them"
            )
        self._clock.renumber(rollout_id, take.policy_version)
        self._clock.consume(rollout_id, [self._clock.admit().group_index for _ in range(fresh)])
        self._num_taken += fresh
        self._num_replayed += len(take.groups) - fresh
        return list(take.groups)

    def pushing(self, policy_version: int) -> None: ...

    async def settled(self) -> None: ...

    def committed(self, num_trained: int, checkpoint: str) -> None: ...

    def statistics(self) -> BufferStatistics:
        return BufferStatistics(
            num_generating=0,
            num_ready=0,
            num_replayable=0,
            num_limited=0,
            num_bytes=0,
            num_segments=0,
            num_put=0,
            num_taken=self._num_taken,
            num_replayed=self._num_replayed,
            num_discarded={},
            trained_lengths={},
            removed_lengths={},
            num_samples_filtered=0,
            admit_wait_seconds=0.0,
            put_wait_seconds=0.0,
            take_wait_seconds=0.0,
            staleness_max=0,
            staleness_bound=self._clock.max_staleness,
        )

    def close(self) -> None: ...

    def _nothing_generates(self) -> NoReturn:
        raise AssertionError("nothing generates while kept rollouts are trained on")
