"""The endless loop that fills the buffer: admit -> prompt -> generate -> reward -> filter ->
buffer.

A `MakeGroup` does what lies between prompt and buffer, here or in a rollout worker.
Consumes: prompts of the source, admissions of the clock. Waits for: a free admission slot.
Unblocked by: a release (the learner finished a rollout and its push, if due, is confirmed) or a
group that gave its slot back.

When the run goes back to a checkpoint (`rewind`) groups under way are not given up: one that is
admitted at the checkpoint goes on under that admission, and one that was admitted after it goes on
too, and waits, when it is made, to be admitted again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pipeline.core.encoded_group import EncodedGroup
from pipeline.core.errors import CheckpointError, GenerateError, RewoundError, UserFunctionError
from pipeline.core.format import counted
from pipeline.core.protocols import Buffer, Source
from pipeline.core.tally import Tally
from pipeline.core.types import Admission, Sample
from pipeline.core.user_errors import names_a_hook
from pipeline.run.group_maker import MakeGroup
from pipeline.run.watchdog import Watchdog
from pipeline.schedule.clock import RolloutClock

logger = logging.getLogger(__name__)


class Producer:
    """Runs as one task beside the learner's loop.

    Returning is an error: only cancellation ends it.
    """

    def __init__(
        self,
        *,
        source: Source,
        make: MakeGroup,
        buffer: Buffer,
        clock: RolloutClock,
        watchdog: Watchdog | None = None,
        dropped: Callable[[EncodedGroup], None] | None = None,
    ) -> None:
        """`dropped` is given the groups that a filter turned down and that `make` shows."""
        self._source, self._make, self._buffer, self._clock = source, make, buffer, clock
        self._dropped = dropped
        self._watchdog = watchdog or Watchdog()
        # by prompt index, of those not yet consumed: what a restart generates again
        self._prompts: dict[int, list[Sample]] = {}
        self._resumed: list[Admission] = []  # admitted before a restart
        self._groups: asyncio.TaskGroup | None = None  # once it runs
        self._under_way: set[int] = set()  # groups that have a task
        self._admitted = asyncio.Event()  # pulsed when a group under way is admitted again
        self._failures_in_a_row = 0
        self._given_up = defaultdict[str, Tally](lambda: Tally(logger, "group", "given up"))
        # samples_generated, samples_failed, samples_timed_out, samples_unjudged, groups_retried,
        # groups_failed, groups_filtered; samples_discarded: complete ones of groups filtered or
        # given up; those of pipeline.core.agent_counts
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as self._groups:
            self._resume(self._groups)
            while True:
                admission = await self._buffer.admit()
                self._prepare(admission)
                self._begin(admission, self._groups)
                # let the group send its requests before the next is admitted
                await asyncio.sleep(0)

    def _resume(self, groups: asyncio.TaskGroup) -> None:
        resumed, self._resumed = self._resumed, []
        for admission in resumed:
            self._begin(admission, groups)

    def _begin(self, admission: Admission, groups: asyncio.TaskGroup) -> None:
        """Generates the group, unless it is recalled or under way since before a rewind."""
        index = admission.group_index
        if self._recalled(admission):
            return
        if index in self._under_way:
            self._admitted.set()
            self._admitted.clear()
            return
        self._under_way.add(index)
        prompts = self._prompts[admission.prompt_index]
        task = groups.create_task(self._produce(admission, prompts))
        task.add_done_callback(lambda _: self._under_way.discard(index))

    def _recalled(self, admission: Admission) -> bool:
        """Does the crash before a restart leave this group complete or given back? Then it need not
        be generated."""
        index = admission.group_index
        found = self._buffer.recall(index, under_way=index in self._under_way)
        if found is not None:
            self.counts[f"groups_recalled_{found}"] += 1
        return found is not None

    def _prepare(self, admission: Admission) -> None:
        """Gives the group its prompt: the source's next, or one that is tried again."""
        known = self._prompts.get(admission.prompt_index)
        samples = self._source.get_samples(1)[0] if known is None else known
        self._prompts[admission.prompt_index] = self._number(admission.group_index, samples)

    async def _produce(self, admission: Admission, prompts: list[Sample]) -> None:
        """Takes one group from its prompt to the buffer, or gives its slot back."""
        made = await self._make(admission, prompts)
        self.counts.update(made.counts)
        admission = await self._admission_of(admission.group_index)
        if made.failed:
            self._give_up(admission, made.failed)
            return
        self._failures_in_a_row = 0
        if made.group is None:
            self.counts["groups_filtered"] += 1
            if self._dropped is not None and made.dropped is not None:
                self._dropped(made.dropped)
            self._give_back(admission, f"filtered: {made.filtered}")
            return
        with self._watchdog.beside("group", admission.group_index, "put"):
            await self._put(made.group)

    async def _admission_of(self, group_index: int) -> Admission:
        """The admission that holds now. After a rewind the group may have to wait for it."""
        while (admission := self._clock.outstanding.get(group_index)) is None:
            await self._admitted.wait()
        return admission

    async def _put(self, group: EncodedGroup) -> None:
        while True:
            admission = await self._admission_of(group.group_index)
            try:
                await self._buffer.put_encoded(replace(group, deadline=admission.deadline))
            except RewoundError:
                continue
            return

    def _give_up(self, admission: Admission, failed: tuple[str, ...]) -> None:
        """Names and counts a group that failed for good. It is never trained as if its reward were
        0."""
        self.counts["groups_failed"] += 1
        self._failures_in_a_row += 1
        why = failed[0]
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

    def rewind(self, state: Mapping[str, Any]) -> None:
        """The run goes back to where this state was taken, and clock and buffer are there already.
        What is under way stays so."""
        self.load_state_dict(state)
        if self._groups is not None:
            self._resume(self._groups)

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
