"""Makes one group, in the driver or in a rollout worker: generate -> reward -> filter -> encode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.core.agent_counts import agent_counts
from pipeline.core.deadline import Deadline, is_late
from pipeline.core.encoded_group import EncodedGroup
from pipeline.core.errors import UnstorableSamplesError
from pipeline.core.protocols import Generate, Reward
from pipeline.core.types import Admission, Group, Sample, Status
from pipeline.run.watchdog import Watchdog

NO_DEADLINE = Deadline()


class Verdict(Protocol):
    """A filter's answer (slime's DynamicFilterOutput)."""

    @property
    def keep(self) -> bool: ...
    @property
    def reason(self) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeGroup:
    """What became of an admitted group: complete, turned down by the filter, or failed."""

    counts: Mapping[str, int]  # as Producer.counts
    group: EncodedGroup | None = None  # complete
    filtered: str | None = None  # why the filter turned it down
    dropped: EncodedGroup | None = None  # ... and the group, where somebody wants to see it
    failed: tuple[str, ...] = ()  # the errors of the samples that failed for good


class MakeGroup(Protocol):
    """Never raises for a failed rollout: the answer says so."""

    async def __call__(self, admission: Admission, prompts: list[Sample]) -> MadeGroup: ...


class GroupMaker:
    """Implements `MakeGroup`. Knows neither buffer nor clock."""

    def __init__(
        self,
        *,
        generate: Generate,
        reward: Reward,
        keep: Callable[[Sequence[Sample]], Verdict],
        encode: Callable[[Group], EncodedGroup],
        group_max_retries: int,
        deadline: Deadline = NO_DEADLINE,
        watchdog: Watchdog | None = None,
        shows_dropped: bool = False,
    ) -> None:
        """`deadline`: of scoring a group (generating has its own). `encode` raises
        UnstorableSamplesError. `shows_dropped`: groups that `keep` turned down are handed back."""
        self._generate, self._reward, self._keep, self._encode = generate, reward, keep, encode
        self._retries, self._deadline = group_max_retries, deadline
        self._watchdog = watchdog or Watchdog()
        self._shows_dropped = shows_dropped

    async def __call__(self, admission: Admission, prompts: list[Sample]) -> MadeGroup:
        counts = Counter[str]()
        samples = await self._generate_and_score(admission, prompts, counts)
        failed = [s for s in samples if s.status is Status.FAILED]
        if failed:
            return _failed(samples, counts)
        verdict = self._keep(samples)
        group = Group(
            group_index=admission.group_index,
            deadline=admission.deadline,
            admitted_version=admission.policy_version,
            samples=tuple(samples),
        )
        try:
            if verdict.keep:
                return MadeGroup(counts=counts, group=self._encode(group))
            counts["samples_discarded"] += len(samples)
            return MadeGroup(
                counts=counts,
                filtered=verdict.reason or "filter said no",
                dropped=self._encode(group) if self._shows_dropped else None,
            )
        except UnstorableSamplesError as error:
            for place, reason in error.reasons.items():
                samples[place].status = Status.FAILED
                samples[place].error = f"Unstorable: {reason}"
            counts["samples_failed"] += len(error.reasons)
            return _failed(samples, counts)

    async def _generate_and_score(
        self, admission: Admission, prompts: list[Sample], counts: Counter[str]
    ) -> list[Sample]:
        """The samples of the group. Those whose generation or scoring failed are generated again,
        up to the limit."""
        done: list[Sample] = []
        todo = prompts
        for attempt in range(self._retries + 1):
            with self._watchdog.beside("group", admission.group_index, "generate"):
                samples = await self._generate(todo, evaluation=False)
            with self._watchdog.beside("group", admission.group_index, "reward"):
                await self._deadline.score(self._reward, [*done, *samples] if done else samples)
            counts["samples_generated"] += len(samples)
            counts.update(agent_counts(samples))
            if unjudged := sum("unjudged" in s.metadata for s in samples):
                counts["samples_unjudged"] += unjudged
            failed = {s.index for s in samples if s.status is Status.FAILED}
            if not failed:
                return [*done, *samples]
            counts["samples_failed"] += sum(s.status is Status.FAILED for s in samples)
            counts.update("samples_timed_out" for s in samples if is_late(s))
            if attempt == self._retries:
                return [*done, *samples]
            counts["groups_retried"] += 1
            again = [s for s in todo if s.index in failed]
            # a custom function numbered its samples itself: nobody knows which prompt to try again
            if not again:
                return [*done, *samples]
            done += [s for s in samples if s.index not in failed]
            todo = again
        raise AssertionError("unreachable")


def _failed(samples: Sequence[Sample], counts: Counter[str]) -> MadeGroup:
    failed = [s for s in samples if s.status is Status.FAILED]
    if len(failed) < len(samples):
        counts["samples_discarded"] += len(samples) - len(failed)
    return MadeGroup(counts=counts, failed=tuple(s.error or "no reason given" for s in failed))
