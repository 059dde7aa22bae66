"""Which complete groups are worth training on. slime's dynamic sampling filters, by signature and by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from pipeline.errors import ConfigError
from pipeline.types import Sample
from pipeline.userfn import load_function

BUILT_IN = "zero_std"


@dataclass(frozen=True, slots=True)
class DynamicFilterOutput:
    """Keep the group? If not, why: reasons are counted."""

    keep: bool
    reason: str | None = None


def filter_zero_std_groups(args: Any, samples: Sequence[Sample], **kwargs: Any) -> DynamicFilterOutput:
    """Drop groups whose rewards are all equal: their advantages are 0 (dynamic sampling, DAPO, arXiv:2503.14476)."""
    key = getattr(args, "reward_key", None)
    rewards = {s.reward_value(key) for s in samples}
    return DynamicFilterOutput(keep=len(rewards) > 1, reason=None if len(rewards) > 1 else "zero_std")


def build_filter(path: str | None, args: SimpleNamespace) -> Callable[[Sequence[Sample]], DynamicFilterOutput]:
    """`--dynamic-sampling-filter-path`: None keeps everything, `zero_std` is built in, else a user's function
    `(args, samples, **kw) -> DynamicFilterOutput | bool`. Raises ConfigError when it cannot be loaded, or answers otherwise."""
    if path is None:
        return lambda samples: DynamicFilterOutput(keep=True)
    function = filter_zero_std_groups if path == BUILT_IN else load_function(path, "keep")

    def verdict(samples: Sequence[Sample]) -> DynamicFilterOutput:
        answer = function(args, samples)
        if isinstance(answer, bool):
            return DynamicFilterOutput(keep=answer, reason=None if answer else path)
        if not hasattr(answer, "keep"):
            raise ConfigError(f"--dynamic-sampling-filter-path {path} answered {answer!r}: expected True, False or DynamicFilterOutput")
        return DynamicFilterOutput(keep=answer.keep, reason=answer.reason)

    return verdict
