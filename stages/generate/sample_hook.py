"""--rollout-sample-hook-path: the user's look at every generated sample, in slime's signature."""

from __future__ import annotations

import inspect
from typing import Any

from configs.hooks import HOOKS, load_hook
from pipeline.core.errors import GenerateError
from pipeline.core.types import Sample
from pipeline.core.user_errors import told

HOOK = HOOKS["rollout_sample_hook_path"]


class SampleHook:
    """`await hook(args, sample, evaluation)`: the sample that is scored, the same or another."""

    def __init__(self, spec: str) -> None:
        """Raises ConfigError when `spec` names no function."""
        self._spec, self._function = spec, load_hook(HOOK.field, spec)
        parameters = inspect.signature(self._function).parameters.values()
        # what it takes of slime's keywords
        self._takes = {p.name for p in parameters} & {"rollout_id", "evaluation"}
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            self._takes = {"rollout_id", "evaluation"}

    async def __call__(self, args: Any, sample: Sample, evaluation: bool) -> Sample:
        """Raises GenerateError when the function returns neither a Sample nor None, and whatever
        the function raises. No rollout is known yet: groups are generated ahead of theirs."""
        known = {"rollout_id": None, "evaluation": evaluation}
        with told(self._function, HOOK.flag):
            answer = self._function(args, sample, **{n: known[n] for n in self._takes})
            if inspect.isawaitable(answer):
                answer = await answer
        if answer is not None and not isinstance(answer, Sample):
            raise GenerateError(
                f"{HOOK.flag} {self._spec} returned {answer!r:.80}: expected a Sample, or None for"
                " the one it was given"
            )
        return sample if answer is None else answer
