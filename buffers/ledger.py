"""The accounts of a run, made from its journal: what became of every group, and what a restart has
to do. Pure.

A restart goes back to a checkpoint, and with it to the admissions of that time: group indices are
given out again in the same order, for the same prompts. So a group that was complete before the
crash is not generated again when its turn comes: it is recalled. Consumptions that the checkpoint
does not cover are void, because their weights are lost; their groups are complete and wait
again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.core.errors import BufferCorruption
from pipeline.core.types import Location

Fate = Literal["trained", "pending", "generating", "failed", "removed"]


@dataclass(slots=True, kw_only=True)
class Account:
    """What became of one group."""

    group_index: int
    prompt_index: int = -1  # its place in the source's order of prompts, from 0
    times_admitted: int = 0
    times_put: int = 0
    place: Location | None = None  # where it lies, when it is complete
    priority: float = 1.0
    oldest_version: int | None = None  # of its tokens
    discarded: str | None = None  # why it gave its slot back
    retried: bool = False  # its prompt was to be tried again then
    # (rollout, policy version), those that hold
    consumed: list[tuple[int, int]] = field(default_factory=list)
    # the same, of the times after the first
    replayed: list[tuple[int, int]] = field(default_factory=list)
    num_void: int = 0  # consumptions that were lost with their weights
    committed_by: str | None = None  # the checkpoint that first covered its consumption

    @property
    def fate(self) -> Fate:
        if self.consumed:
            return "trained"
        if self.discarded is not None:
            return "failed" if self.discarded.startswith("failed") else "removed"
        return "pending" if self.place is not None else "generating"

    @property
    def times_sampled(self) -> int:
        return len(self.consumed) + len(self.replayed)

    @property
    def recallable(self) -> bool:
        """Is the group complete, and still to be trained on?"""
        return self.place is not None and not self.consumed and self.discarded is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumption:
    """What a rollout consumed, in order: groups for the first time, then replayed ones."""

    policy_version: int
    groups: tuple[int, ...]
    probabilities: tuple[float, ...]


class Ledger:
    """Applies journal entries in order; its accounts can be looked at at any time."""

    def __init__(self, entries: Iterable[Mapping[str, Any]] = ()) -> None:
        self.accounts: dict[int, Account] = {}
        self.policy_version = 0  # the highest that was ever pushed, or restored to
        self.num_entries = 0  # that were applied
        self.num_restores = 0
        self.commits: list[tuple[int, str]] = []  # (rollouts covered, checkpoint)
        self.takes: dict[int, Consumption] = {}  # by rollout, those that hold
        self._known: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "open": lambda _: None,
            "admit": self._admit,
            "put": self._put,
            "gone": self._gone,
            "discard": self._discard,
            "consume": self._consume,
            "push": self._push,
            "trained": lambda _: None,
            "pushed": lambda _: None,
            "commit": self._commit,
            "restore": self._restore,
        }
        for number, entry in enumerate(entries):
            self.apply(entry, number)

    def apply(self, entry: Mapping[str, Any], number: int = -1) -> None:
        """Raises BufferCorruption for an entry that cannot follow what came before."""
        try:
            self._known[entry["t"]](entry)
        except (KeyError, TypeError, AssertionError) as e:
            raise BufferCorruption(
                f"journal entry {number} {dict(entry)!r:.120} does not fit: {type(e).__name__} {e}"
            ) from e
        self.num_entries += 1

    def recallable(self) -> dict[int, Account]:
        """The groups that a restart recalls instead of generating, by index."""
        return {g: a for g, a in self.accounts.items() if a.recallable}

    def totals(self) -> dict[str, int]:
        """How many groups met each fate, how many times groups were replayed, and two sums that
        must be 0: `lost`, complete groups that are neither trained, nor waiting, nor given back
        with a reason; `duplicated`, consumptions beyond the first that were no replays."""
        accounts = self.accounts.values()
        fates = {
            fate: sum(a.fate == fate for a in accounts)
            for fate in ("trained", "pending", "generating", "failed", "removed")
        }
        lost = sum(
            a.times_put > 0 and a.place is None and not a.consumed and a.discarded is None
            for a in accounts
        )
        duplicated = sum(max(0, len(a.consumed) - 1) for a in accounts)
        return {
            **fates,
            "replayed": sum(len(a.replayed) for a in accounts),
            "lost": lost,
            "duplicated": duplicated,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-able row for every group."""
        return [
            {
                "group": a.group_index,
                "prompt": a.prompt_index,
                "times_admitted": a.times_admitted,
                "times_put": a.times_put,
                "consumed": [{"rollout": r, "policy_version": v} for r, v in a.consumed],
                "replayed": [{"rollout": r, "policy_version": v} for r, v in a.replayed],
                "consumptions_void": a.num_void,
                "committed_by": a.committed_by,
                "fate": a.fate,
                "reason": a.discarded,
            }
            for a in self.accounts.values()
        ]

    # -- the entries -------------------------------------------------------------------------------

    def _admit(self, entry: Mapping[str, Any]) -> None:
        group_index = entry["g"]
        if (account := self.accounts.get(group_index)) is None:
            account = self.accounts[group_index] = Account(group_index=group_index)
        account.times_admitted += 1
        # journals of schema 1 knew no retried prompts
        account.prompt_index = entry.get("i", entry["g"])

    def _put(self, entry: Mapping[str, Any]) -> None:
        account = self.accounts[entry["g"]]
        assert account.place is None, "the group is complete already"
        account.times_put += 1
        account.place = Location(segment=entry["s"], offset=entry["o"], num_bytes=entry["n"])
        account.priority, account.oldest_version = entry.get("p", 1.0), entry.get("w")

    def _gone(self, entry: Mapping[str, Any]) -> None:
        self.accounts[entry["g"]].place = None

    def _discard(self, entry: Mapping[str, Any]) -> None:
        account = self.accounts[entry["g"]]
        assert not account.consumed, "the group is consumed already"
        account.discarded, account.retried = str(entry["why"]), bool(entry.get("again"))

    def _consume(self, entry: Mapping[str, Any]) -> None:
        rollout, version, groups = entry["r"], entry["v"], entry["g"]
        for g in groups:
            account = self.accounts[g]
            assert account.place is not None, f"group {g} was never put"
            account.consumed.append((rollout, version))
        for g in entry.get("x", ()):
            account = self.accounts[g]
            assert account.consumed, f"group {g} is replayed, and was never trained on"
            account.replayed.append((rollout, version))
        every = (*groups, *entry.get("x", ()))
        self.takes[rollout] = Consumption(
            policy_version=version,
            groups=every,
            probabilities=tuple(entry.get("pr", [1.0] * len(every))),
        )

    def _push(self, entry: Mapping[str, Any]) -> None:
        self.policy_version = max(self.policy_version, entry["v"])

    def _commit(self, entry: Mapping[str, Any]) -> None:
        self.commits.append((entry["r"], entry["name"]))
        for rollout, taken in self.takes.items():
            for g in taken.groups if rollout < entry["r"] else ():
                account = self.accounts[g]
                account.committed_by = account.committed_by or entry["name"]

    def _restore(self, entry: Mapping[str, Any]) -> None:
        self.num_restores += 1
        self.policy_version = max(self.policy_version, entry["v"])
        # a crash may have come between a checkpoint and its line here
        for rollout, taken in self.takes.items():
            for g in taken.groups if rollout < entry["r"] else ():
                self.accounts[g].committed_by = self.accounts[g].committed_by or entry["name"]
        for rollout in [r for r in self.takes if r >= entry["r"]]:
            for g in self.takes.pop(rollout).groups:
                account = self.accounts[g]
                account.consumed = [(r, v) for r, v in account.consumed if r != rollout]
                account.replayed = [(r, v) for r, v in account.replayed if r != rollout]
                account.num_void += 1
                account.committed_by = account.committed_by if account.consumed else None
