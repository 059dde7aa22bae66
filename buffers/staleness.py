"""How stale consumed tokens are, and whether the bound was kept."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.core.errors import ReplayBufferError
from pipeline.core.types import Group
from pipeline.schedule.clock import RolloutClock


class StalenessCheck:
    """Checks the bound on staleness at consumption. Scheduling keeps it; an engine that served
    older weights than it confirmed is found here."""

    def __init__(self, clock: RolloutClock) -> None:
        self._clock = clock
        self._recalled: set[int] = set()
        self.highest = 0  # of any token of a consumed group, in policy versions

    def excuse(self, group_index: int) -> None:
        """The group was recalled after a crash, or was under way when the learner was lost.
        Versions that were lost count, so the group may be staler than the bound."""
        self._recalled.add(group_index)

    def rewound(self) -> None:
        """What was recalled is recalled anew, if it is not trained."""
        self._recalled.clear()

    def is_excused(self, group_index: int) -> bool:
        return group_index in self._recalled

    def check(self, groups: Iterable[Group], rollout_id: int) -> int:
        """The staleness of the stalest token. Raises ReplayBufferError beyond the bound."""
        return max((self._of(group, rollout_id) for group in groups), default=0)

    def consumed(self, groups: Iterable[Group], staleness: int) -> None:
        """These groups were taken; `staleness` is what `check` returned for them."""
        self.highest = max(self.highest, staleness)
        self._recalled.difference_update(g.group_index for g in groups)

    def _of(self, group: Group, rollout_id: int) -> int:
        stalest, bound = 0, self._clock.max_staleness
        for sample in group.samples:
            if (version := sample.oldest_version()) is None:
                continue
            stalest = max(stalest, self._clock.staleness(version, rollout_id))
            if stalest > bound and group.group_index not in self._recalled:
                raise ReplayBufferError(
                    f"group {group.group_index}, sample {sample.index}: tokens of policy version"
                    f" {version} at rollout {rollout_id} are {stalest} versions stale, the bound"
                    f" is {bound}. The group was admitted at version {group.admitted_version}: an"
                    " engine (or a custom generate function) used older weights"
                )
        return stalest
