"""Which groups were given back instead of trained on, by which flag and why: said when nothing was
trained for long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from configs.schema import Config
from pipeline.core.format import counted, number

_NAMED = 3  # reasons of a cause that are named
_KEPT = 10  # ... and that its record keeps
_LONGEST_REASON = 80


class BufferGroups(Protocol):
    """What must be known of buffers.statistics.BufferStatistics."""

    @property
    def num_ready(self) -> int: ...
    @property
    def num_discarded(self) -> Mapping[str, int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A flag that decides that a group is given back."""

    flag: str  # with its value
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """The groups that one cause gave back since the last trained rollout."""

    flag: str
    advice: str
    num_groups: int
    num_reasons: int
    reasons: Mapping[str, int]  # the commonest, in that order

    def __str__(self) -> str:
        named = [f"{reason}: {number(n)}" for reason, n in [*self.reasons.items()][:_NAMED]]
        more = self.num_reasons - len(named)
        if more:
            named.append(f"and {counted(more, 'other reason')}")
        return f"{number(self.num_groups)} by {self.flag} ({', '.join(named)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedGroups:
    """All the groups given back since the last trained rollout; at least one."""

    num_groups: int
    num_ready: int  # groups that wait for the learner
    num_wanted: int  # groups that a rollout takes
    causes: tuple[Dropped, ...]  # the commonest first

    @property
    def advice(self) -> str | None:
        """What to do; a few dropped groups are no reason to do anything."""
        return self.causes[0].advice if self.num_groups >= self.num_wanted else None

    def __str__(self) -> str:
        were = "was" if self.num_groups == 1 else "were"
        return (
            f"since then {counted(self.num_groups, 'group')} {were} dropped and"
            f" {number(self.num_ready)} of the {number(self.num_wanted)} that a rollout takes"
            f" are ready: {'; '.join(map(str, self.causes))}"
        )


class Drops:
    """Compares what the buffer has given back with what it had at the last trained rollout."""

    def __init__(
        self,
        statistics: Callable[[], BufferGroups],
        causes: Mapping[str, Cause],
        *,
        num_wanted: int,
    ) -> None:
        """`causes`: by the kind of a reason, the word before its colon. `num_wanted`: fresh groups
        of a rollout."""
        self._statistics, self._causes, self._num_wanted = statistics, causes, num_wanted
        self._before: Mapping[str, int] = {}
        self.trained()

    def trained(self) -> None:
        """A rollout was trained: the count begins anew."""
        self._before = dict(self._statistics().num_discarded)

    def since_trained(self) -> DroppedGroups | None:
        """None when no group was given back."""
        now = self._statistics()
        new = Counter(now.num_discarded)
        new.subtract(self._before)
        by_kind = _by_kind(+new)
        if not by_kind:
            return None
        dropped = [self._dropped(kind, reasons) for kind, reasons in by_kind.items()]
        return DroppedGroups(
            num_groups=sum(d.num_groups for d in dropped),
            num_ready=now.num_ready,
            num_wanted=self._num_wanted,
            causes=tuple(sorted(dropped, key=lambda d: -d.num_groups)),
        )

    def _dropped(self, kind: str, reasons: Counter[str]) -> Dropped:
        cause = self._causes[kind]
        return Dropped(
            flag=cause.flag,
            advice=cause.advice,
            num_groups=reasons.total(),
            num_reasons=len(reasons),
            reasons={r[:_LONGEST_REASON]: n for r, n in reasons.most_common(_KEPT)},
        )


def _by_kind(given_back: Mapping[str, int]) -> dict[str, Counter[str]]:
    """'filtered: dull' -> 'filtered' -> 'dull': how many groups."""
    out: dict[str, Counter[str]] = {}
    for given, count in given_back.items():
        kind, _, reason = given.partition(": ")
        out.setdefault(kind, Counter())[reason or kind] += count
    return out


def counts_by_kind(given_back: Mapping[str, int]) -> dict[str, int]:
    """The groups given back since the start, for a train record."""
    totals = {kind: reasons.total() for kind, reasons in _by_kind(given_back).items()}
    return {
        "groups_filtered": totals.get("filtered", 0),
        "groups_failed": totals.get("failed", 0),
        "groups_removed_stale": totals.get("stale", 0) + totals.get("outdated", 0),
        "groups_removed_by_buffer_filter": totals.get("buffer_filter", 0),
    }


def causes_of(config: Config) -> dict[str, Cause]:
    """By the kind of a reason with which a group is given back: the flag behind it."""
    rollout, waits = config.rollout, config.async_
    return {
        "filtered": Cause(
            flag=f"--dynamic-sampling-filter-path {rollout.dynamic_sampling_filter_path}",
            advice="A filter that keeps no group never lets a rollout begin: let it keep more, or"
            " give prompts of which it keeps some",
        ),
        "failed": Cause(
            flag=f"failures, after --group-max-retries {rollout.group_max_retries}",
            advice="run.log names every group that was given up and its error: mend what it says",
        ),
        "stale": Cause(
            flag=f"--stale-policy {waits.stale_policy}",
            advice="Raise --max-staleness, or wait for late groups: --stale-policy wait",
        ),
        "outdated": Cause(
            flag=f"--rollout-function-path {rollout.rollout_function_path}",
            advice="The function returns groups that policy versions older than --max-staleness"
            " allows have generated: let it keep fewer from one call to the next, or raise"
            " --max-staleness",
        ),
        "buffer_filter": Cause(
            flag=f"--buffer-filter-path {waits.buffer_filter_path}",
            advice="What the function takes out of `buffer` and does not return is dropped: let it"
            " leave in `buffer` what a later rollout may train on",
        ),
    }
