"""A user's own data source, in slime's shape: `get_samples(n)`, `add_samples(groups)`,
`save(rollout_id)`, `load(rollout_id)`."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from configs.hooks import HOOKS, load_hook
from pipeline.core.errors import DataError
from pipeline.core.types import Sample
from pipeline.core.user_errors import name_errors
from stages.source.bases import RolloutDataSource

METHODS = tuple(HOOKS["data_source_path"].methods)


class UserSource:
    """Implements `Source` over an instance of the class that `--data-source-path` names, made as
    `Class(args)`.

    Where it stands is its own affair (a `RolloutDataSource` of ours is part of the snapshot): a
    snapshot calls `save(n)`, with n counting the snapshots
    from 1, and a resumed run calls `load(n)`. After `load` it must hand out the same groups again,
    in the same order: what a crash left complete is told by that order."""

    def __init__(self, spec: str, args: SimpleNamespace, n_samples_per_prompt: int) -> None:
        """Raises ConfigError when the class cannot be imported, DataError when it lacks a data
        source's methods."""
        self._spec, self._n, self._num_saves = spec, n_samples_per_prompt, 0
        self.user: Any = load_hook("data_source_path", spec)(args)
        missing = [name for name in METHODS if not callable(getattr(self.user, name, None))]
        if missing:
            raise DataError(
                f"--data-source-path {spec}: {type(self.user).__name__} has no"
                f" {', '.join(missing)}; expected {', '.join(METHODS)}"
            )

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """Raises DataError unless the user's class returns `num_samples` groups of
        n_samples_per_prompt Samples each."""
        groups = self._call("get_samples", num_samples)
        if not isinstance(groups, list) or len(groups) != num_samples:
            got = f"{len(groups)} of them" if isinstance(groups, list) else type(groups).__name__
            raise DataError(
                f"--data-source-path {self._spec}: get_samples({num_samples}) gave {got}; expected"
                f" a list of {num_samples} groups"
            )
        for group in groups:
            if (
                not isinstance(group, list)
                or len(group) != self._n
                or not all(isinstance(s, Sample) for s in group)
            ):
                shape = (
                    f"a list of {len(group)} {type(group[0]).__name__}"
                    if isinstance(group, list) and group
                    else repr(group)[:80]
                )
                raise DataError(
                    f"--data-source-path {self._spec}: a group is {shape}; expected a list of"
                    f" --n-samples-per-prompt {self._n} pipeline.core.types.Sample"
                )
        return groups

    def _call(self, method: str, given: Any) -> Any:
        function = getattr(self.user, method)
        return name_errors(function, "--data-source-path", self._spec)(given)

    def add_samples(self, groups: list[list[Sample]]) -> None:
        self._call("add_samples", groups)

    def state_dict(self) -> dict[str, Any]:
        self._num_saves += 1
        self._call("save", self._num_saves)
        state: dict[str, Any] = {"data_source_path": self._spec, "save": self._num_saves}
        if isinstance(self.user, RolloutDataSource):
            state["prompts"] = self.user.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.get("data_source_path") != self._spec:
            raise DataError(
                f"the saved position is of {state.get('data_source_path') or '--prompt-data'}, not"
                f" of --data-source-path {self._spec}: resume with the same prompts, or start a"
                " new run"
            )
        self._num_saves = state["save"]
        if isinstance(self.user, RolloutDataSource):
            self.user.load_state_dict(state["prompts"])
        self._call("load", self._num_saves)
