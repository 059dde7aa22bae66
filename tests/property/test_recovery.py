"""Crashes at any instant: the real clock, buffer, journal and segments, driven by hypothesis, killed and restored.

The model keeps what a correct run must keep: which groups were ever complete, which are trained under the last checkpoint.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from buffers.replay import ReplayBuffer
from configs.schema import AsyncConfig
from pipeline.clock import RolloutClock
from pipeline.types import Group, Sample, Status, VersionSpan

P, NUM_ROLLOUT = 2, 6


class Runs(RuleBasedStateMachine):
    """admit / put / discard / take + train / push / checkpoint / crash + restore, in any order that the clock allows."""

    @initialize(k=st.integers(0, 3), n=st.integers(1, 2), durability=st.sampled_from(["process", "fsync"]))
    def begin(self, k: int, n: int, durability: Any) -> None:
        self.config = AsyncConfig(async_buffer_size=k, update_weights_interval=n, buffer_durability=durability)
        self.folder = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.clock = self._clock()
        self.buffer = ReplayBuffer(self.folder, self.config, self.clock)
        self.saved: tuple[int, dict[str, Any]] | None = None
        self.complete: set[int] = set()  # ever put
        self.given_back: set[int] = set()
        self.trained: list[list[int]] = []  # by rollout, on the surviving timeline
        self.generated_again: list[int] = []
        self.versions = [0]

    def _clock(self) -> RolloutClock:
        return RolloutClock(
            rollout_batch_size=P,
            async_buffer_size=self.config.async_buffer_size,
            update_weights_interval=self.config.update_weights_interval,
            num_rollout=NUM_ROLLOUT,
        )

    def teardown(self) -> None:
        if hasattr(self, "buffer"):
            self.buffer.close()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()
            shutil.rmtree(self.folder)

    # -- a run's steps

    def _generating(self) -> list[int]:
        return [g for g in self.clock.outstanding if not self.buffer._scheduler.is_ready(g)]

    @precondition(lambda self: self.clock.may_admit())
    @rule()
    def admit(self) -> None:
        admission = self.buffer.try_admit()
        assert admission is not None
        self._recall(admission.group_index)

    def _recall(self, group: int) -> None:
        found = self.buffer.recall(group)
        assert (found == "complete") == (group in self.complete), f"group {group} was complete before: it must not be generated again"
        assert (found == "discarded") == (group in self.given_back)

    @precondition(lambda self: self._generating())
    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(self._generating()))
        admission = self.clock.outstanding[group]
        span = VersionSpan(self.clock.policy_version, 0, 1)
        sample = Sample(
            index=group,
            tokens=[group, 1],
            response_length=1,
            rollout_log_probs=[0.0],
            reward=0.0,
            status=Status.COMPLETED,
            weight_versions=[span],
        )
        whole = Group(group_index=group, deadline=admission.deadline, admitted_version=admission.policy_version, samples=(sample,))
        self.loop.run_until_complete(self.buffer.put(whole))
        assert group not in self.complete
        self.complete.add(group)

    @precondition(lambda self: self._generating())
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(self._generating()))
        self.buffer.discard(group, "filtered: test")
        self.given_back.add(group)

    def _can_take(self) -> bool:
        if self.clock.finished or self.clock.push_pending:
            return False
        from buffers.limiter import Batch

        return isinstance(self.buffer._scheduler.plan(self.clock.num_trained), Batch)

    @precondition(lambda self: self._can_take())
    @rule(crash_before_trained=st.booleans())
    def take(self, crash_before_trained: bool) -> None:
        rollout = self.clock.num_trained
        groups = self.loop.run_until_complete(self.buffer.take(rollout))
        assert [s.tokens[0] for g in groups for s in g.samples] == [g.group_index for g in groups], "the bytes are another group's"
        if crash_before_trained:
            self.crash()
            return
        self.trained.append([g.group_index for g in groups])
        self.clock.trained(rollout)

    @precondition(lambda self: self.clock.push_pending)
    @rule(crash_half_way=st.booleans())
    def push(self, crash_half_way: bool) -> None:
        self.buffer.pushing(self.clock.policy_version + 1)
        assert self.clock.policy_version + 1 > max(self.versions), "a version number is used twice"
        self.versions.append(self.clock.policy_version + 1)
        if crash_half_way:
            self.crash()
        else:
            self.clock.pushed()

    @precondition(lambda self: self.clock.num_trained > 0 and not self.clock.push_pending)
    @rule(crash_before_commit_line=st.booleans())
    def checkpoint(self, crash_before_commit_line: bool) -> None:
        self.saved = (self.clock.num_trained, self.clock.state_dict())
        if crash_before_commit_line:
            self.crash()
        else:
            self.buffer.committed(self.clock.num_trained, f"rollout_{self.clock.num_trained:06d}")

    @rule(torn=st.integers(0, 12))
    def crash_and_tear(self, torn: int) -> None:
        self.crash(torn)

    def crash(self, torn: int = 0) -> None:
        """The process is gone; its files are as they were, behind them perhaps the beginning of a line."""
        self.buffer._journal.close()  # descriptors only: every line is written already
        self.buffer._store._segments.clear()
        with (self.folder / FILE_NAME).open("ab") as f:
            f.write(b"0123abcd {..."[:torn])
        self.clock = self._clock()
        name = None
        if self.saved is not None:
            self.clock.load_state_dict(self.saved[1])
            name = f"rollout_{self.saved[0]:06d}"
        records, cut = read_journal(self.folder / FILE_NAME)
        assert cut == torn
        ledger = Ledger(records)
        self.clock.skip_versions_until(ledger.policy_version)
        assert self.clock.policy_version >= max(self.versions)
        self.versions.append(self.clock.policy_version)
        self.buffer = ReplayBuffer(self.folder, self.config, self.clock, ledger=ledger, restored_from=name)
        self.trained = self.trained[: self.clock.num_trained]
        for group in list(self.clock.outstanding):
            self._recall(group)

    # -- what always holds

    @invariant()
    def the_journal_accounts_for_everything(self) -> None:
        if not hasattr(self, "buffer"):
            return
        ledger = Ledger(read_journal(self.folder / FILE_NAME)[0])
        totals = ledger.totals()
        assert (totals["lost"], totals["duplicated"]) == (0, 0)
        trained = {g: a.consumed[0][0] for g, a in ledger.accounts.items() if a.consumed}
        assert trained == {g: r for r, groups in enumerate(self.trained) for g in groups}
        assert {g for g, a in ledger.accounts.items() if a.times_put} == self.complete
        assert all(a.times_put <= 1 for a in ledger.accounts.values())


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
