"""Every decision of a recorded run, made again from its journal: admissions, deadlines, choices.
Pure.

The clock, the scheduler and the replay pool that decided then are driven by the journal's events,
in order; what they decide now must be what is written there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.schema import AsyncConfig
from pipeline.core.types import Location
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.deadlines import Batch, DeadlineScheduler
from pipeline.schedule.replay_pool import Entry, ReplayPool
from pipeline.schedule.selectors import make_selector

Record = Mapping[str, Any]


class Rerun:
    """Feed it all records of one life of a run (up to a `restore`).

    `differences` says what came out otherwise.
    """

    def __init__(self, config: AsyncConfig, clock: RolloutClock, *, seed: int) -> None:
        selector = make_selector(
            config.buffer_selector, seed=seed, exponent=config.buffer_priority_exponent
        )
        self._clock, self._user_chose = clock, config.buffer_filter_path is not None
        self._scheduler = DeadlineScheduler(
            clock.batch_size, selector, waits=config.stale_policy == "wait"
        )
        self._pool = ReplayPool(
            selector=selector,
            max_times_sampled=config.max_times_sampled,
            max_staleness=clock.max_staleness,
        )
        self._puts: dict[int, Record] = {}
        self.num_admitted = self.num_taken = 0  # decisions compared
        self.differences: list[str] = []

    def run(self, records: Sequence[Record]) -> None:
        """A take is decided when the journal had `at` records, and written down when its bytes were
        read."""
        takes = {record["at"]: record for record in records if record["t"] == "consume"}
        for number, record in enumerate(records):
            if (take := takes.get(number)) is not None:
                self._choose(take)
            for what in self._apply(record):
                self.differences.append(f"record {number}: {what}")

    def _apply(self, record: Record) -> Iterator[str]:
        match record["t"]:
            case "admit":
                yield from self._admit(record)
            case "put":
                self._puts[record["g"]] = record
                self._scheduler.ready(record["g"], record["p"])
            case "discard":
                self._scheduler.remove(record["g"])
                self._clock.give_back(record["g"], record["why"], retry=bool(record.get("again")))
            case "consume":
                self._consume(record)
            case "trained":
                self._clock.trained(record["r"])
            case "pushed":
                self._clock.pushed()

    def _admit(self, record: Record) -> Iterator[str]:
        self.num_admitted += 1
        if not self._clock.may_admit():
            yield f"group {record['g']} was admitted, the clock would have waited"
            return
        a = self._clock.admit()
        now, then = (
            (a.group_index, a.deadline, a.policy_version, a.prompt_index),
            tuple(record[k] for k in ("g", "d", "v", "i")),
        )
        if now != then:
            yield f"admitted {then} (group, deadline, version, prompt), now it would be {now}"
        self._scheduler.register(record["g"], record["d"])

    def _choose(self, record: Record) -> None:
        rollout_id = record["r"]
        self._pool.expire(self._clock.version_at(rollout_id))
        again = [
            p.group_index
            for p in self._pool.choose(
                rollout_id, self._clock.limiter.batch - self._clock.batch_size
            )
        ]
        plan = self._scheduler.plan(rollout_id)
        fresh = list(plan.group_indices) if isinstance(plan, Batch) else None
        self.num_taken += 1
        if again != record["x"] or (fresh != record["g"] and not self._user_chose):
            self.differences.append(
                f"rollout {rollout_id} took {record['g']} and {record['x']} again, now it would be"
                f" {fresh or plan} and {again}"
            )

    def _consume(self, record: Record) -> None:
        for group in record["g"]:
            candidate, put = self._scheduler.candidate(group), self._puts.pop(group)
            self._scheduler.remove(group)
            place = Location(segment=put["s"], offset=put["o"], num_bytes=put["n"])
            oldest = (
                put["w"] if put["w"] is not None else self._clock.outstanding[group].policy_version
            )
            self._pool.add(
                Entry(candidate=candidate, place=place, oldest_version=oldest, times_sampled=1)
            )
        self._pool.sampled(record["x"])
        self._clock.consume(record["r"], record["g"])
