"""Every decision of a recorded run, made again from its journal: admissions, deadlines, choices.
Pure.

The object that decided then, `Decisions`, is driven by the journal's events in order; what it
decides now must be what is written there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from buffers.policy import make_decisions
from configs.schema import AsyncConfig
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.decisions import Choice

Record = Mapping[str, Any]


class DecisionCheck:
    """Feed it all records of one life of a run (up to a `restore`).

    `differences` says what came out otherwise.
    """

    def __init__(self, config: AsyncConfig, clock: RolloutClock, *, seed: int) -> None:
        self._decisions = make_decisions(config, clock, seed=seed)
        self._clock, self._user_chose = clock, config.buffer_filter_path is not None
        self.num_admitted = self.num_taken = 0  # decisions compared
        self.differences: list[str] = []

    def run(self, records: Sequence[Record]) -> None:
        """A take is decided when the journal had `at` records, and written down when its bytes were
        read. An admission that differs ends the check: what follows is of another run."""
        takes = {record["at"]: record for record in records if record["t"] == "consume"}
        for number, record in enumerate(records):
            if (take := takes.get(number)) is not None:
                self._choose(take)
            if record["t"] == "admit":
                if (what := self._admit(record)) is not None:
                    self.differences.append(f"record {number}: {what}")
                    return
            elif (what := self._apply(record)) is not None:
                self.differences.append(f"record {number}: {what}")

    def _apply(self, record: Record) -> str | None:
        """What came out otherwise."""
        match record["t"]:
            case "put":
                self._decisions.ready(record["g"], priority=record["p"], oldest_version=record["w"])
            case "discard":
                return self._discard(record)
            case "consume":
                self._decisions.consume(record["r"], record["g"], record["x"])
            case "trained":
                self._clock.trained(record["r"])
            case "pushed":
                self._clock.pushed()
        return None

    def _admit(self, record: Record) -> str | None:
        self.num_admitted += 1
        if not self._decisions.may_admit():
            return f"group {record['g']} was admitted, the clock would have waited"
        a = self._decisions.admit()
        now = (a.group_index, a.deadline, a.policy_version, a.prompt_index)
        then = tuple(record[k] for k in ("g", "d", "v", "i"))
        if now == then:
            return None
        return f"admitted {then} (group, deadline, version, prompt), now it would be {now}"

    def _discard(self, record: Record) -> str | None:
        group, why, retry = record["g"], record["why"], bool(record.get("again"))
        wrong = why.startswith("stale: ") and not self._decisions.is_late(group)
        self._decisions.discard(group, why, retry=retry)
        return f"group {group} was removed as {why}, now it would not be late" if wrong else None

    def _choose(self, record: Record) -> None:
        rollout_id, then = record["r"], (record["g"], record["x"])
        choice = self._decisions.choose(rollout_id)
        self.num_taken += 1
        if isinstance(choice, Choice):
            now = (choice.fresh_indices, choice.again_indices)
            if now == then or (self._user_chose and now[1] == then[1]):
                return
            says = f"now it would be {now[0]} and {now[1]}"
        else:
            says = f"now it would wait: {choice}"
        self.differences.append(f"rollout {rollout_id} took {then[0]} and {then[1]} again, {says}")
