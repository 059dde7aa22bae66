"""A run that drops every group says so: how many, by which flag, and why. Every kind of dropping is
done by the real producer or buffer; the time is moved by hand."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from buffers.userfilter import UserFilter
from configs.command_line.loader import load_config
from pipeline.core.types import Sample
from pipeline.run.drops import Drops, causes_of, counts_by_kind
from pipeline.run.watchdog import Silence, Watchdog
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.decisions import Decisions
from pipeline.wiring import FAMILIES
from tests.manual_time import ManualTime
from tests.unit.buffers.test_policies import admit_all, make, make_group, release
from tests.unit.pipeline.run.test_producer import world

FLAGS = ("--mock", "--dynamic-sampling-filter-path", "zero_std", "--buffer-filter-path")
HOOK = "def buffer_filter(args, rollout_id, buffer, num_samples):\n    return []\n"


class Watched:
    """A watchdog over a buffer, as a run has it."""

    def __init__(self, tmp_path: Path, buffer: Any, num_wanted: int = 2) -> None:
        hook = tmp_path / "my_filter.py"
        hook.write_text(HOOK)
        config = load_config(
            [*FLAGS, str(hook), "--async-buffer-size", "1", "--stale-policy", "drop"],
            families=FAMILIES,
        )
        self.time = ManualTime()
        self.watchdog = Watchdog(self.time)
        self.watchdog.watch_drops(
            Drops(buffer.statistics, causes_of(config), num_wanted=num_wanted)
        )

    def silence(self, stage: str = "take") -> Silence:
        with self.watchdog.stage(stage):
            self.time.advance(40.0)
            said = self.watchdog.check()
        assert said is not None
        json.dumps(said.record())
        return said


async def given_back(clock: RolloutClock, number: int) -> None:
    """Until so many groups have been."""
    enough = asyncio.Event()

    def look() -> None:
        if sum(clock.given_back.values()) >= number:
            enough.set()

    clock.subscribe(look)
    look()
    async with asyncio.timeout(20):
        await enough.wait()


async def test_a_filter_that_drops_every_group_is_named_with_its_reasons(tmp_path: Path) -> None:
    def keep(samples: Sequence[Sample]) -> Any:
        dull = int(samples[0].prompt) % 3 < 2
        return SimpleNamespace(keep=False, reason="dull" if dull else "long: 99 tokens")

    w = world(tmp_path / "buffer", keep=keep)
    watched = Watched(tmp_path, w.buffer)
    async with w.running():
        await given_back(w.clock, 30)
    said = watched.silence()
    assert said.dropped is not None
    num = said.dropped.num_groups
    assert num == w.producer.counts["groups_filtered"] and said.dropped.num_ready == 0
    (cause,) = said.dropped.causes
    assert cause.flag == "--dynamic-sampling-filter-path zero_std"
    assert list(cause.reasons) == ["dull", "long: 99 tokens"]  # the commonest first
    text = str(said)
    assert text.startswith(
        f"nothing was trained for 40.0 s: since then {num} groups were dropped and 0 of the 2 that"
        f" a rollout takes are ready: {num} by --dynamic-sampling-filter-path zero_std (dull: "
    )
    assert "now the learner is at 'take' for 40.0 s" in text
    assert text.endswith("let it keep more, or give prompts of which it keeps some")
    assert counts_by_kind(w.clock.given_back)["groups_filtered"] == num


async def test_groups_that_fail_are_named_with_their_errors(tmp_path: Path) -> None:
    w = world(tmp_path / "buffer", retries=0, fails=lambda prompt, *_: int(prompt) % 16 != 15)
    watched = Watched(tmp_path, w.buffer)
    async with w.running():
        await given_back(w.clock, 8)
    said = watched.silence()
    assert "by failures, after --group-max-retries 1 (EngineError: " in str(said)
    assert "run.log names every group that was given up" in str(said)
    num = w.producer.counts["groups_failed"]
    assert counts_by_kind(w.clock.given_back)["groups_failed"] == num


async def test_a_buffer_filter_that_takes_everything_out_is_named(tmp_path: Path) -> None:
    def takes_all_out(args: Any, rollout_id: int, buffer: list[Any], num_samples: int) -> list[Any]:
        buffer.clear()
        return []

    user_filter = UserFilter("f.py", takes_all_out, None)
    buffer, clock = make(tmp_path / "buffer", fresh=2, K=0, S=0, user_filter=user_filter)
    watched = Watched(tmp_path, buffer)
    take = asyncio.create_task(buffer.take(0))
    for number in (2, 4, 6):
        for admission in admit_all(buffer):
            await buffer.put(make_group(admission))
        await given_back(clock, number)
    said = watched.silence()
    take.cancel()
    assert said.dropped is not None and said.dropped.num_groups == 6
    assert "6 by --buffer-filter-path " in str(said) and "my_filter.py (buffer_filter: 6)" in str(
        said
    )
    assert "leave in `buffer` what a later rollout may train on" in str(said)
    assert counts_by_kind(clock.given_back)["groups_removed_by_buffer_filter"] == 6


async def test_groups_that_were_too_late_are_named(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path / "buffer", fresh=1, K=1, S=1, stale_policy="drop")
    watched = Watched(tmp_path, buffer, num_wanted=1)
    slow, fast = admit_all(buffer)
    await buffer.put(make_group(fast))
    await buffer.take(0)
    release(clock, 0)
    await buffer.put(make_group(admit_all(buffer)[0]))
    await buffer.take(1)
    release(clock, 1)
    await buffer.put(make_group(slow))
    said = watched.silence()
    assert "since then 1 group was dropped and" in str(said)
    assert "1 by --stale-policy drop (dropped: 1)" in str(said)
    assert "--stale-policy wait" in str(said)
    assert counts_by_kind(clock.given_back)["groups_removed_stale"] == 1


@pytest.mark.parametrize("under_way_seconds", [0.02, 30.0])
async def test_a_request_is_named_beside_a_filter_only_when_it_is_old(
    tmp_path: Path, under_way_seconds: float
) -> None:
    buffer = Counted()
    watched = Watched(tmp_path, buffer)
    buffer.num_discarded["filtered: dull"] += 100
    watched.time.advance(60.0)
    with watched.watchdog.stage("take"), watched.watchdog.beside("group", 7, "generate"):
        watched.time.advance(under_way_seconds)
        said = str(watched.watchdog.check())
    assert ("group 7: generate for" in said) == (under_way_seconds == 30.0)
    assert ("the oldest of 1 group under way for 20 ms" in said) == (under_way_seconds == 0.02)


class Counted:
    """A buffer that has only counts."""

    def __init__(self) -> None:
        self.num_ready, self.num_discarded = 1, Counter[str]()

    def statistics(self) -> Counted:
        return self


def test_only_what_was_dropped_since_the_last_trained_rollout_counts(tmp_path: Path) -> None:
    buffer = Counted()
    watched = Watched(tmp_path, buffer)
    assert watched.silence().dropped is None
    buffer.num_discarded["filtered: dull"] += 5
    watched.watchdog.trained()
    said = watched.silence()
    assert said.dropped is None and "dropped" not in str(said)
    buffer.num_discarded["filtered: dull"] += 1
    watched.watchdog._told = 0.0
    said = watched.silence()
    assert said.dropped is not None and said.dropped.num_groups == 1
    assert "1 of the 2 that a rollout takes are ready" in str(said)
    assert said.dropped.advice is None, "one dropped group is no reason to change anything"
    watched.watchdog._told = 0.0
    assert watched.silence("push").dropped is None, "a push waits for no group"


def test_many_reasons_are_cut_to_the_commonest(tmp_path: Path) -> None:
    buffer = Counted()
    watched = Watched(tmp_path, buffer)
    for number in range(50):
        buffer.num_discarded[f"filtered: reason {number}"] = number + 1
    buffer.num_discarded["failed: EngineError"] = 9000
    said = watched.silence()
    assert said.dropped is not None
    first, second = said.dropped.causes
    assert (first.num_groups, second.num_groups) == (9000, 1275)
    assert len(second.reasons) == 10 and second.num_reasons == 50
    assert "(reason 49: 50, reason 48: 49, reason 47: 48, and 47 other reasons)" in str(said)
    assert said.dropped.advice == first.advice


@pytest.mark.parametrize("policy", ["drop", "retry"])
def test_every_reason_of_a_late_group_has_its_cause(policy: Any, tmp_path: Path) -> None:
    _, clock = make(tmp_path / "buffer", fresh=1, K=1, S=1)
    buffer = Counted()
    watched = Watched(tmp_path, buffer)
    buffer.num_discarded[Decisions(clock, stale_policy=policy).late_reason] += 1
    said = watched.silence()
    assert said.dropped is not None and "--stale-policy" in said.dropped.causes[0].flag
