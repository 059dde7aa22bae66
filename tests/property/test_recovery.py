"""Crashes at any instant: the real clock, buffer, journal and segments, driven by hypothesis,
killed and restored.

The model keeps what a correct run must keep: which groups were ever complete, which are trained
under the last checkpoint."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from buffers.replay_buffer import ReplayBuffer
from configs.schema import AsyncConfig
from pipeline.core.types import Group, Sample, Status, VersionSpan
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.decisions import Choice
from pipeline.schedule.rate_limiter import RateLimiter

P, NUM_ROLLOUT = 2, 8  # P: fresh groups a rollout


class Runs(RuleBasedStateMachine):
    """admit / put / discard / take + train / push / checkpoint / crash + restore, in any order that
    the clock allows."""

    @initialize(
        k=st.integers(0, 3),
        n=st.integers(1, 2),
        slack=st.integers(0, 2),
        most=st.integers(1, 3),
        durability=st.sampled_from(["process", "fsync"]),
        policy=st.sampled_from(["wait", "drop", "retry"]),
        selector=st.sampled_from(["deadline", "uniform", "prioritized"]),
    )
    def begin(
        self, k: int, n: int, slack: int, most: int, durability: Any, policy: Any, selector: Any
    ) -> None:
        self.config = AsyncConfig(
            async_buffer_size=k,
            update_weights_interval=n,
            max_staleness=-(-k // n) + slack,
            buffer_durability=durability,
            max_times_sampled=most,
            stale_policy=policy if k else "wait",
            buffer_selector=selector,
        )
        self.folder = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.clock = self._clock()
        self.buffer = ReplayBuffer(self.folder, self.config, self.clock)
        self.saved: tuple[int, dict[str, Any]] | None = None
        self.complete: set[int] = set()  # ever put
        self.given_back: set[int] = set()
        self.trained: list[list[int]] = []  # by rollout, on the surviving timeline: fresh groups
        self.replayed: list[list[int]] = []  # the same: groups that were trained on before
        self.prompt_of: dict[int, int] = {}
        self.versions = [0]

    def _clock(self) -> RolloutClock:
        return RolloutClock(
            rollout_batch_size=P,
            async_buffer_size=self.config.async_buffer_size,
            update_weights_interval=self.config.update_weights_interval,
            num_rollout=NUM_ROLLOUT,
            max_staleness=self.config.max_staleness,
            limiter=RateLimiter.rollouts(
                fresh=P,
                samples_per_insert=float(self.config.max_times_sampled),
                buffer_size=self.config.async_buffer_size,
            ),
        )

    def teardown(self) -> None:
        """Whatever happened: the run can still be brought to its end, and then everything is
        accounted for."""
        if hasattr(self, "buffer"):
            for step in range(5000):
                if self.clock.finished:
                    break
                self._advance(random.Random(step))
            assert self.clock.finished, "the run cannot end"
            self.the_journal_accounts_for_everything()
            self.buffer.close()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()
            shutil.rmtree(self.folder)

    # -- a run's steps

    def _generating(self) -> list[int]:
        return [g for g in self.clock.outstanding if not self.buffer._decisions.is_ready(g)]

    @precondition(lambda self: self.clock.may_admit())
    @rule()
    def admit(self) -> None:
        admission = self.buffer.try_admit()
        assert admission is not None
        known = self.prompt_of.setdefault(admission.group_index, admission.prompt_index)
        assert known == admission.prompt_index, (
            "after a crash a group answers another prompt than before"
        )
        self._recall(admission.group_index)

    def _note_removed(self) -> None:
        """What the buffer removed itself, for its deadline."""
        settled = {g for groups in self.trained for g in groups}
        gone = {
            g
            for g in range(self.clock.num_admitted)
            if g not in self.clock.outstanding and g not in settled
        }
        assert gone == self.given_back & gone or self.config.stale_policy != "wait"
        self.given_back |= gone
        self.complete -= gone

    def _recall(self, group: int, under_way: bool = False) -> None:
        found = self.buffer.recall(group, under_way=under_way)
        assert (found == "complete") == (group in self.complete), (
            f"group {group} was complete before: it must not be generated again"
        )
        assert (found == "discarded") == (group in self.given_back)
        self._note_removed()

    @rule(count=st.integers(5, 80), seed=st.integers(0, 1000))
    def run_on(self, count: int, seed: int) -> None:
        """A longer stretch without a crash, groups completing in any order, slow ones among
        them."""
        chance = random.Random(seed)
        for _ in range(count):
            if not self.clock.finished:
                self._advance(chance)

    def _advance(self, chance: random.Random) -> None:
        generating = self._generating()
        if self.clock.push_pending and chance.random() < 0.5:
            self._push()
        elif self._can_take() and chance.random() < 0.8:
            self._take()
        elif self.clock.may_admit():
            self.admit()
        elif generating:
            self._put(
                chance.choice(generating[1:])
                if len(generating) > 1 and chance.random() < 0.9
                else generating[0]
            )
        elif self.clock.push_pending:
            self._push()

    @precondition(lambda self: self._generating())
    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        self._put(data.draw(st.sampled_from(self._generating())))

    def _put(self, group: int) -> None:
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
        whole = Group(
            group_index=group,
            deadline=admission.deadline,
            admitted_version=admission.policy_version,
            samples=(sample,),
        )
        self.loop.run_until_complete(self.buffer.put(whole))
        assert group not in self.complete
        self.complete.add(group)
        self._note_removed()

    @precondition(lambda self: self._generating())
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(self._generating()))
        self.buffer.discard(group, "filtered: test")
        self.given_back.add(group)

    def _can_take(self) -> bool:
        if self.clock.finished or self.clock.push_pending:
            return False
        return isinstance(self.buffer._decisions.choose(self.clock.num_trained), Choice)

    @precondition(lambda self: self._can_take())
    @rule(crash_before_trained=st.booleans())
    def take(self, crash_before_trained: bool) -> None:
        self._take(crash_before_trained)

    def _take(self, crash_before_trained: bool = False) -> None:
        rollout = self.clock.num_trained
        groups = self.loop.run_until_complete(self.buffer.take(rollout))
        assert [s.tokens[0] for g in groups for s in g.samples] == [
            g.group_index for g in groups
        ], "the bytes are another group's"
        if crash_before_trained:
            self.crash()
            return
        times = Counter(
            g for rollouts in (self.trained, self.replayed) for groups in rollouts for g in groups
        )
        assert all(
            g.times_sampled == times[g.group_index] + 1 <= self.config.max_times_sampled
            for g in groups
        )
        assert all(0 < g.probability <= 1 for g in groups)
        self.trained.append([g.group_index for g in groups if g.times_sampled == 1])
        self.replayed.append([g.group_index for g in groups if g.times_sampled > 1])
        assert len(self.trained[-1]) == P and len(groups) <= P * self.config.max_times_sampled
        self._note_removed()
        self.clock.trained(rollout)

    @precondition(lambda self: self.clock.push_pending)
    @rule(crash_half_way=st.booleans())
    def push(self, crash_half_way: bool) -> None:
        self._push(crash_half_way)

    def _push(self, crash_half_way: bool = False) -> None:
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
        """The process is gone; its files are as they were, behind them perhaps the beginning of a
        line."""
        self.buffer._journal.close()  # descriptors only: every line is written already
        self.buffer._stored.store._segments.clear()
        with (self.folder / FILE_NAME).open("ab") as f:
            f.write(b"0123abcd {..."[:torn])
        self.clock = self._clock()
        name = None
        if self.saved is not None:
            self.clock.load_state_dict(self.saved[1])
            name = f"rollout_{self.saved[0]:06d}"
        entries, cut = read_journal(self.folder / FILE_NAME)
        assert cut == torn
        ledger = Ledger(entries)
        self.clock.skip_versions_until(ledger.policy_version)
        assert self.clock.policy_version >= max(self.versions)
        self.versions.append(self.clock.policy_version)
        self.buffer = ReplayBuffer(
            self.folder, self.config, self.clock, ledger=ledger, restored_from=name
        )
        self.trained, self.replayed = (
            self.trained[: self.clock.num_trained],
            self.replayed[: self.clock.num_trained],
        )
        for group in list(self.clock.outstanding):
            self._recall(group)

    @rule(crash_soon=st.booleans())
    def lose_the_learner(self, crash_soon: bool) -> None:
        """The process lives on, and goes back to the checkpoint. What it generates is under way
        before and after."""
        version = max(self.versions) + 1
        self.buffer.pushing(version)  # the engines have the restored weights first
        self.versions.append(version)
        if crash_soon:
            self.crash()
            return
        under_way = set(self._generating())
        before = self.saved or (0, self._clock().state_dict())
        self.clock.load_state_dict(before[1])
        self.clock.renumber(self.clock.num_trained, version)
        assert self.clock.policy_version == version
        self.buffer.rewind(f"rollout_{before[0]:06d}" if self.saved else None)
        self.trained, self.replayed = self.trained[: before[0]], self.replayed[: before[0]]
        for group in list(self.clock.outstanding):
            self._recall(group, under_way=group in under_way)

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
        replayed = {(g, r) for g, a in ledger.accounts.items() for r, _ in a.replayed}
        assert replayed == {(g, r) for r, groups in enumerate(self.replayed) for g in groups}
        prompts = [ledger.accounts[g].prompt_index for g in trained]
        assert len(set(prompts)) == len(prompts), "a prompt is trained on twice"
        answered = {a.prompt_index for a in ledger.accounts.values()}
        assert answered == set(range(len(answered))), "a prompt is skipped"
        assert {
            g for g, a in ledger.accounts.items() if a.times_put and a.discarded is None
        } == self.complete
        assert all(a.times_put <= 1 for a in ledger.accounts.values())


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=200, stateful_step_count=40)
