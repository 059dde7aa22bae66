"""Every decision of a run, made again from its journal: admissions, deadlines, choices. Pure.

The object that decided then, `Decisions`, is driven by the journal's events in order; what it
decides now must be what is written there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from buffers.policy import make_decisions
from configs.schema import AsyncConfig
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.decisions import Choice

JournalEntry = Mapping[str, Any]


class DecisionCheck:
    """Compares one life of a run (its journal up to a `restore`) with what would be decided now.

    `differences` says in words what came out otherwise."""

    def __init__(self, config: AsyncConfig, clock: RolloutClock, *, seed: int) -> None:
        self._decisions = make_decisions(config, clock, seed=seed)
        self._clock, self._user_chose = clock, config.buffer_filter_path is not None
        self.num_admitted = self.num_taken = 0  # decisions compared
        self.differences: list[str] = []

    def run(self, entries: Sequence[JournalEntry]) -> None:
        """Goes through the entries in order. A rollout was decided when the journal had `at`
        entries, and written down later, when its bytes had been read: it is compared at `at`. An
        admission that differs ends the check, for what follows is another run."""
        takes = {entry["at"]: entry for entry in entries if entry["t"] == "consume"}
        for number, entry in enumerate(entries):
            if (take := takes.get(number)) is not None:
                self._choose(take)
            if entry["t"] == "admit":
                if (what := self._admit(entry)) is not None:
                    self.differences.append(f"entry {number}: {what}")
                    return
            elif (what := self._apply(entry)) is not None:
                self.differences.append(f"entry {number}: {what}")

    def _apply(self, entry: JournalEntry) -> str | None:
        """Moves the decisions on by one entry; returns in words what came out otherwise."""
        match entry["t"]:
            case "put":
                self._decisions.ready(entry["g"], priority=entry["p"], oldest_version=entry["w"])
            case "discard":
                return self._discard(entry)
            case "consume":
                self._decisions.consume(entry["r"], entry["g"], entry["x"])
            case "trained":
                self._clock.trained(entry["r"])
            case "pushed":
                self._clock.pushed()
        return None

    def _admit(self, entry: JournalEntry) -> str | None:
        self.num_admitted += 1
        if not self._decisions.may_admit():
            return f"group {entry['g']} was admitted, the clock would have waited"
        a = self._decisions.admit()
        now = (a.group_index, a.deadline, a.policy_version, a.prompt_index)
        then = tuple(entry[k] for k in ("g", "d", "v", "i"))
        if now == then:
            return None
        return f"admitted {then} (group, deadline, version, prompt), now it would be {now}"

    def _discard(self, entry: JournalEntry) -> str | None:
        group, why, retry = entry["g"], entry["why"], bool(entry.get("again"))
        rightly = True
        if why.startswith("stale: "):
            rightly = self._decisions.is_late(group)
        elif why.startswith("outdated: "):
            rightly = group in self._decisions.outdated_groups(self._clock.num_consumed)
        self._decisions.discard(group, why, retry=retry)
        return None if rightly else f"group {group} was removed as {why}, now it would not be"

    def _choose(self, entry: JournalEntry) -> None:
        rollout_id, then = entry["r"], (entry["g"], entry["x"])
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
