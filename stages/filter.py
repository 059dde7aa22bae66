"""Which complete groups are worth training on. slime's dynamic sampling filters, by signature and
by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from configs.hook import BUILT_IN_FILTER
from configs.hooks import load_hook
from pipeline.core.errors import ConfigError
from pipeline.core.types import Sample


@dataclass
class DynamicFilterOutput:
    """Is the group kept? If not, `reason` says why; reasons are counted."""

    keep: bool
    reason: str | None = None


def filter_zero_std_groups(
    args: Any, samples: Sequence[Sample], **kwargs: Any
) -> DynamicFilterOutput:
    """Drops groups whose rewards are all equal: their advantages are 0 (dynamic sampling, DAPO,
    arXiv:2503.14476). Raises ConfigError for a reward without a number."""
    key = getattr(args, "reward_key", None)
    try:
        rewards = {s.reward_value(key) for s in samples}
    except ValueError as error:
        raise ConfigError(
            f"--dynamic-sampling-filter-path {BUILT_IN_FILTER} compares numbers, but {error} in a"
            " filter of your own"
        ) from error
    return DynamicFilterOutput(
        keep=len(rewards) > 1, reason=None if len(rewards) > 1 else "zero_std"
    )


def build_filter(
    path: str | None, args: SimpleNamespace
) -> Callable[[Sequence[Sample]], DynamicFilterOutput]:
    """`--dynamic-sampling-filter-path`: None keeps everything, `zero_std` is built in, anything
    else is a user's function `(args, samples, **kw) -> DynamicFilterOutput | bool`. Raises
    ConfigError when the function cannot be loaded; so does the filter when it returns anything
    else."""
    if path is None:
        return lambda samples: DynamicFilterOutput(keep=True)
    function = (
        filter_zero_std_groups
        if path == BUILT_IN_FILTER
        else load_hook("dynamic_sampling_filter_path", path)
    )

    def verdict(samples: Sequence[Sample]) -> DynamicFilterOutput:
        answer = function(args, samples)
        if isinstance(answer, bool):
            return DynamicFilterOutput(keep=answer, reason=None if answer else path)
        if not hasattr(answer, "keep"):
            raise ConfigError(
                f"--dynamic-sampling-filter-path {path} answered {answer!r}: expected True, False"
                " or DynamicFilterOutput"
            )
        return DynamicFilterOutput(keep=bool(answer.keep), reason=answer.reason)

    return verdict


def build_sample_filter(
    path: str | None, args: SimpleNamespace
) -> Callable[[list[list[Sample]]], None] | None:
    """`--rollout-sample-filter-path`: `(args, groups) -> None` sets `remove_sample` on what shall
    have no loss.

    A function that returns anything is refused with ConfigError: its author expects more than what
    happens."""
    if path is None:
        return None
    function = load_hook("rollout_sample_filter_path", path)

    def apply(groups: list[list[Sample]]) -> None:
        answer = function(args, groups)
        if answer is not None:
            raise ConfigError(
                f"--rollout-sample-filter-path {path} answered {answer!r:.80}: expected None; set"
                " sample.remove_sample = True"
            )

    return apply


def build_all_samples_process(
    path: str | None, args: SimpleNamespace, source: Any
) -> Callable[[list[list[Sample]]], None] | None:
    """`--rollout-all-samples-process-path`: `(args, all_groups, data_source)`; what it returns is
    not looked at.

    `source`: the run's; a user's own (--data-source-path) is passed on as the user made it.
    """
    if path is None:
        return None
    function = load_hook("rollout_all_samples_process_path", path)
    data_source = getattr(source, "user", source)
    return lambda groups: function(args, groups, data_source)
