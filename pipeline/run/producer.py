"""The endless loop that fills the buffer: admit -> prompt -> generate -> reward -> filter ->
buffer.

Consumes: prompts of the source, admissions of the clock. Waits for: a free admission slot.
Unblocked by: a release (the learner finished a rollout and its push, if due, is confirmed) or a
group that gave its slot back."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pipeline.core.deadline import Deadline, is_late
from pipeline.core.errors import (
    CheckpointError,
    GenerateError,
    UnstorableSamplesError,
    UserFunctionError,
)
from pipeline.core.format import counted
from pipeline.core.protocols import Buffer, Generate, Reward, Source
from pipeline.core.tally import Tally
from pipeline.core.types import Admission, Group, Sample, Status
from pipeline.core.user_errors import names_a_hook
from pipeline.run.watchdog import Watchdog
from pipeline.schedule.clock import RolloutClock

logger = logging.getLogger(__name__)
NO_DEADLINE = Deadline()


class Verdict(Protocol):
    """A filter's answer (slime's DynamicFilterOutput)."""

    @property
    def keep(self) -> bool: ...
    @property
    def reason(self) -> str | None: ...


class Producer:
    """Runs as one task beside the learner's loop.

    Returning is an error: only cancellation ends it.
    """

    def __init__(
        self,
        *,
        source: Source,
        generate: Generate,
        reward: Reward,
        keep: Callable[[Sequence[Sample]], Verdict],
        buffer: Buffer,
        clock: RolloutClock,
        group_max_retries: int,
        deadline: Deadline = NO_DEADLINE,
        watchdog: Watchdog | None = None,
        dropped: Callable[[list[Sample]], None] | None = None,
    ) -> None:
        """`deadline`: of scoring a group (generating has its own). `dropped` is given the samples
        of every group that `keep` turned down."""
        self._source, self._generate, self._reward, self._keep = source, generate, reward, keep
        self._buffer, self._clock, self._retries = buffer, clock, group_max_retries
        self._deadline, self._dropped = deadline, dropped
        self._watchdog = watchdog or Watchdog()
        # by prompt index, of those not yet consumed: what a restart generates again
        self._prompts: dict[int, list[Sample]] = {}
        self._resumed: list[Admission] = []  # admitted before a restart
        self._failures_in_a_row = 0
        self._given_up = defaultdict[str, Tally](lambda: Tally(logger, "group", "given up"))
        # samples_generated, samples_failed, samples_timed_out, samples_unjudged, groups_retried,
        # groups_failed, groups_filtered; samples_discarded: complete ones of groups filtered or
        # given up
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as groups:
            for admission in self._resumed:
                if not self._recalled(admission):
                    groups.create_task(self._produce(admission))
            while True:
                admission = await self._buffer.admit()
                self._prepare(admission)
                if not self._recalled(admission):
                    groups.create_task(self._produce(admission))
                # let the group send its requests before the next is admitted
                await asyncio.sleep(0)

    def _recalled(self, admission: Admission) -> bool:
        """Does the crash before a restart leave this group complete or given back? Then it need not
        be generated."""
        found = self._buffer.recall(admission.group_index)
        if found is not None:
            self.counts[f"groups_recalled_{found}"] += 1
        return found is not None

    def _prepare(self, admission: Admission) -> None:
        """Gives the group its prompt: the source's next, or one that is tried again."""
        known = self._prompts.get(admission.prompt_index)
        samples = self._source.get_samples(1)[0] if known is None else known
        self._prompts[admission.prompt_index] = self._number(admission.group_index, samples)

    async def _produce(self, admission: Admission) -> None:
        """Takes one group from its prompt to the buffer, or gives its slot back."""
        samples = await self._generate_and_score(admission)
        failed = [s for s in samples if s.status is Status.FAILED]
        if failed:
            self.counts.update(
                "samples_discarded" for s in samples if s.status is not Status.FAILED
            )
            self._give_up(admission, failed)
            return
        verdict = self._keep(samples)
        if not verdict.keep:
            self._failures_in_a_row = 0
            self.counts["groups_filtered"] += 1
            self.counts["samples_discarded"] += len(samples)
            if self._dropped is not None:
                self._dropped(samples)
            self._give_back(admission, f"filtered: {verdict.reason or 'filter said no'}")
            return
        group = Group(
            group_index=admission.group_index,
            deadline=admission.deadline,
            admitted_version=admission.policy_version,
            samples=tuple(samples),
        )
        try:
            with self._watchdog.beside("group", admission.group_index, "put"):
                await self._buffer.put(group)
        except UnstorableSamplesError as error:
            self._give_up(admission, self._unstorable(samples, error))
        else:
            self._failures_in_a_row = 0

    def _unstorable(self, samples: list[Sample], error: UnstorableSamplesError) -> list[Sample]:
        """Those that failed, by what a custom function made of them after they were scored."""
        for place, reason in error.reasons.items():
            samples[place].status, samples[place].error = Status.FAILED, f"Unstorable: {reason}"
        self.counts["samples_failed"] += len(error.reasons)
        self.counts["samples_discarded"] += len(samples) - len(error.reasons)
        return [samples[place] for place in error.reasons]

    async def _generate_and_score(self, admission: Admission) -> list[Sample]:
        """The samples of the group. Those whose generation or scoring failed are generated again,
        up to the limit."""
        done: list[Sample] = []
        todo = self._prompts[admission.prompt_index]
        for attempt in range(self._retries + 1):
            with self._watchdog.beside("group", admission.group_index, "generate"):
                samples = await self._generate(todo, evaluation=False)
            with self._watchdog.beside("group", admission.group_index, "reward"):
                await self._deadline.score(self._reward, [*done, *samples] if done else samples)
            self.counts["samples_generated"] += len(samples)
            if unjudged := sum("unjudged" in s.metadata for s in samples):
                self.counts["samples_unjudged"] += unjudged
            failed = {s.index for s in samples if s.status is Status.FAILED}
            if not failed:
                return [*done, *samples]
            self.counts["samples_failed"] += sum(s.status is Status.FAILED for s in samples)
            self.counts.update("samples_timed_out" for s in samples if is_late(s))
            if attempt == self._retries:
                return [*done, *samples]
            self.counts["groups_retried"] += 1
            again = [s for s in todo if s.index in failed]
            # a custom function numbered its samples itself: nobody knows which prompt to try again
            if not again:
                return [*done, *samples]
            done += [s for s in samples if s.index not in failed]
            todo = again
        raise AssertionError("unreachable")

    def _give_up(self, admission: Admission, failed: list[Sample]) -> None:
        """Names and counts a group that failed for good. It is never trained as if its reward were
        0."""
        self.counts["groups_failed"] += 1
        self._failures_in_a_row += 1
        why = failed[0].error or "no reason given"
        tally = self._given_up[type_of(why)]
        samples = counted(len(failed), "sample")
        tally.add(f"group {admission.group_index}: {samples} failed, the first with: {why}")
        tally.say()
        limit = max(16, 2 * self._clock.batch_size)
        if self._failures_in_a_row >= limit:
            raise (UserFunctionError if names_a_hook(why) else GenerateError)(
                f"{limit} groups failed in a row, the last with: {why}. Nothing can be trained on;"
                " fix the cause and resume"
            )
        self._give_back(admission, f"failed: {type_of(why)}")

    def _give_back(self, admission: Admission, reason: str) -> None:
        self._prompts.pop(admission.prompt_index)
        self._buffer.discard(admission.group_index, reason)

    def _number(self, group_index: int, samples: list[Sample]) -> list[Sample]:
        for place, sample in enumerate(samples):
            sample.group_index, sample.index = group_index, group_index * len(samples) + place
        return samples

    # -- resume ------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Drops the prompts that a restart need not generate again: those trained on, and those
        given back for good."""
        wanted = self._clock.prompts_wanted
        self._prompts = {
            index: samples for index, samples in self._prompts.items() if index in wanted
        }

    def state_dict(self) -> dict[str, Any]:
        self.forget()
        return {
            "source": self._source.state_dict(),
            "counts": dict(self.counts),
            "prompts": {
                str(index): [s.to_dict() for s in samples]
                for index, samples in self._prompts.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The groups that were under way are generated again, under their old admissions. Load the
        clock first. Raises CheckpointError when clock and prompts disagree on what was under
        way."""
        self._source.load_state_dict(state["source"])
        self.counts = Counter(state["counts"])
        self._prompts = {
            int(index): [Sample.from_dict(s) for s in samples]
            for index, samples in state["prompts"].items()
        }
        if self._prompts.keys() != self._clock.prompts_wanted:
            raise CheckpointError(
                f"the saved state has prompts {sorted(self._prompts)}, but prompts"
                f" {sorted(self._clock.prompts_wanted)} are under way in it: state.json is damaged;"
                " resume from another snapshot"
            )
        self._resumed = [admission for _, admission in sorted(self._clock.outstanding.items())]


def type_of(error: str) -> str:
    """'TimeoutError: 30 s' -> 'TimeoutError': reasons are counted, so they must be few."""
    return error.split(":", 1)[0][:80]
