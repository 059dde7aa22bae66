"""The endless loop that fills the buffer with what a user's rollout function makes.

Consumes: admissions of the clock, as many as are free, a rollout's at most. Waits for: a free
admission slot; then for the function, which is called again when it has returned. Unblocked by: a
release."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol

from pipeline.core.errors import RewardError
from pipeline.core.protocols import Buffer, Reward, Source
from pipeline.core.types import Admission, Group, Sample, Status
from pipeline.run.watchdog import Watchdog
from pipeline.schedule.clock import RolloutClock


class AdmittingBuffer(Buffer, Protocol):
    """One that says at once when nothing more is admitted."""

    def try_admit(self) -> Admission | None: ...


class MakeGroups(Protocol):
    """(rollout_id, num_groups): that many groups."""

    def __call__(self, rollout_id: int, num_groups: int) -> Awaitable[list[list[Sample]]]: ...


class RolloutProducer:
    """Takes the place of `Producer`: groups come scored and chosen from the function, and nothing
    is tried again. A restart asks it for what is missing, and so does a rewind: the call that is
    under way then is called off."""

    def __init__(
        self,
        *,
        source: Source,
        make: MakeGroups,
        reward: Reward,
        buffer: AdmittingBuffer,
        clock: RolloutClock,
        watchdog: Watchdog,
    ) -> None:
        """`reward` scores the samples that the function left without a reward."""
        self._source, self._make, self._reward = source, make, reward
        self._buffer, self._clock, self._watchdog = buffer, clock, watchdog
        self._resumed: list[Admission] = []  # admitted before a restart
        self._rewound = asyncio.Event()
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Only cancellation ends it."""
        while True:
            self._rewound.clear()
            life = asyncio.ensure_future(self._fill())
            rewound = asyncio.ensure_future(self._rewound.wait())
            try:
                await asyncio.wait({life, rewound}, return_when=asyncio.FIRST_COMPLETED)
                if life.done():
                    return life.result()
            finally:
                for task in (life, rewound):
                    task.cancel()
                await asyncio.wait({life, rewound})
                if not life.cancelled():
                    life.exception()  # of what failed as it was called off: seen

    async def _fill(self) -> None:
        pending = [a for a in self._resumed if not self._recalled(a)]
        while True:
            if not pending:
                pending = [a for a in await self._admitted() if not self._recalled(a)]
            batch, pending = pending[: self._clock.batch_size], pending[self._clock.batch_size :]
            if batch:
                await self._produce(batch)

    async def _admitted(self) -> list[Admission]:
        """At least one; more where they are free now."""
        admissions = [await self._buffer.admit()]
        while len(admissions) < self._clock.batch_size:
            admission = self._buffer.try_admit()
            if admission is None:
                break
            admissions.append(admission)
        return admissions

    def _recalled(self, admission: Admission) -> bool:
        found = self._buffer.recall(admission.group_index)
        if found is not None:
            self.counts[f"groups_recalled_{found}"] += 1
        return found is not None

    async def _produce(self, admissions: Sequence[Admission]) -> None:
        first = admissions[0].group_index
        rollout_id = first // self._clock.batch_size
        with self._watchdog.beside("group", first, "rollout function"):
            groups = await self._make(rollout_id, len(admissions))
        for admission, samples in zip(admissions, groups, strict=True):
            await self._put(admission, samples)

    async def _put(self, admission: Admission, samples: list[Sample]) -> None:
        # those of one rollout have one index, and share its weight
        places: dict[int | None, int] = {}
        for sample in samples:
            place = places.setdefault(sample.index, len(places))
            sample.group_index = admission.group_index
            sample.index = admission.group_index * len(samples) + place
        with self._watchdog.beside("group", admission.group_index, "reward"):
            await self._reward(samples)
        failed = next((s for s in samples if s.status is Status.FAILED), None)
        if failed is not None:
            raise RewardError(f"a sample of the rollout function has no reward: {failed.error}")
        self.counts["samples_generated"] += len(samples)
        group = Group(
            group_index=admission.group_index,
            deadline=admission.deadline,
            admitted_version=admission.policy_version,
            samples=tuple(samples),
        )
        with self._watchdog.beside("group", admission.group_index, "put"):
            await self._buffer.put(group)

    def rewind(self, state: Mapping[str, Any]) -> None:
        """The run goes back to where this state was taken, and clock and buffer are there
        already."""
        self.load_state_dict(state)
        self._rewound.set()

    def forget(self) -> None:
        """Nothing is kept of what was trained on."""

    def state_dict(self) -> dict[str, Any]:
        return {"source": self._source.state_dict(), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the clock first: what is outstanding there, and not in the buffer, is asked of the
        function again."""
        self._source.load_state_dict(state["source"])
        self.counts = Counter(state["counts"])
        self._resumed = [admission for _, admission in sorted(self._clock.outstanding.items())]
