"""--buffer-filter-path: the user's own choice among the ready groups, in slime's signature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import ReplayBufferError
from pipeline.core.types import Group, Sample

# (args, rollout_id, buffer, num_samples) -> list of groups
Function = Callable[[Any, int, list[list[Sample]], int], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    wanted: tuple[int, ...]  # groups to train on, best first
    removed: tuple[int, ...]  # groups that the function took out of the buffer and did not return


class UserFilter:
    """Calls `f(args, rollout_id, buffer, num_samples)`. `buffer` is a list that the function may
    change: the ready groups, each a list of its samples, the most urgent first. What the function
    returns is trained on; what it takes out and does not return is given back, counted as
    `buffer_filter` and replaced; what it leaves may be offered again. Groups whose deadline is due
    are trained on in any case."""

    def __init__(self, spec: str, function: Function, args: Any) -> None:
        self._spec, self._function, self._args = spec, function, args

    def __call__(self, rollout_id: int, groups: Sequence[Group], num_groups: int) -> Choice:
        """Raises ReplayBufferError unless the answer is a list of at most `num_groups` of the
        buffer's groups."""
        lists = [list(g.samples) for g in groups]
        index_of = {id(samples): g.group_index for samples, g in zip(lists, groups, strict=True)}
        buffer = list(lists)
        answer = self._function(self._args, rollout_id, buffer, num_groups)
        if not isinstance(answer, list) or len(answer) > num_groups:
            got = f"{len(answer)} groups" if isinstance(answer, list) else type(answer).__name__
            raise self._refused(
                f"gave {got}, expected a list of at most num_samples = {num_groups} groups out of"
                " `buffer`"
            )
        wanted = [index_of.get(id(samples)) for samples in answer]
        if None in wanted or len(set(wanted)) < len(wanted):
            raise self._refused(
                "returned a group that is not in `buffer`, or the same one twice: return its own"
                " lists, uncopied"
            )
        left = {id(samples) for samples in buffer}
        chosen = tuple(g for g in wanted if g is not None)
        removed = tuple(g for key, g in index_of.items() if key not in left and g not in chosen)
        return Choice(wanted=chosen, removed=removed)

    def _refused(self, what: str) -> ReplayBufferError:
        return ReplayBufferError(f"--buffer-filter-path {self._spec} {what}")
