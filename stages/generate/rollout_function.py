"""--rollout-function-path: a function of the user's that makes whole rollouts, in slime's
signature."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from configs.hooks import HOOKS, load_hook
from pipeline.core.errors import GenerateError, SlipstreamError, UserFunctionError
from pipeline.core.protocols import Source
from pipeline.core.threads import in_thread
from pipeline.core.types import Sample, Status
from pipeline.core.user_errors import in_words, told
from stages.generate.check import check_sample

logger = logging.getLogger(__name__)
HOOK = HOOKS["rollout_function_path"]


@dataclass(kw_only=False)
class RolloutFnTrainOutput:
    """What such a function may return instead of its groups: `metrics` are logged."""

    samples: list[list[Sample]]
    metrics: dict[str, Any] | None = None


@dataclass(kw_only=False)
class RolloutFnEvalOutput:
    """What an evaluation returns: of every data set `rewards`, and `samples` or `truncated`."""

    data: dict[str, dict[str, Any]]
    metrics: dict[str, Any] | None = None


class DataBuffer:
    """The prompts as the function sees them: `get_samples`, `add_samples`, from any thread. Samples
    are numbered as they are handed out."""

    def __init__(self, source: Source) -> None:
        self._source, self._lock = source, threading.Lock()
        self._num_groups = self._num_samples = 0

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """So many groups of PENDING samples; what was given back goes first."""
        with self._lock:
            groups = self._source.get_samples(num_samples)
            for group in groups:
                for sample in group:
                    sample.group_index, sample.index = self._num_groups, self._num_samples
                    self._num_samples += 1
                self._num_groups += 1
            return groups

    def add_samples(self, samples: list[list[Sample]]) -> None:
        """Groups that were not finished; they are handed out first, next time."""
        with self._lock:
            self._source.add_samples(samples)


class RolloutFunction:
    """`await function(rollout_id, num_groups)`: that many groups of samples that can be trained
    on."""

    def __init__(
        self,
        spec: str,
        args: Any,
        source: Source,
        *,
        current_version: Callable[[], int],
        log_probs_for: str | None = None,
    ) -> None:
        """Raises ConfigError when `spec` names no function. `current_version`: the oldest that any
        engine serves; stamps samples without version spans."""
        self._spec, self._args = spec, args
        self._function = load_hook(HOOK.field, spec)
        self._buffer = DataBuffer(source)
        self._current_version, self._log_probs_for = current_version, log_probs_for

    async def __call__(self, rollout_id: int, num_groups: int) -> list[list[Sample]]:
        """Raises UserFunctionError or what the function raised, GenerateError where its answer is
        not that many groups, or holds a sample that cannot be trained on."""
        args = copy(self._args)
        args.rollout_batch_size = num_groups  # after a restart, or a group given back: the rest
        version = self._current_version()
        answer = await called(self._function, HOOK.flag, args, rollout_id, self._buffer)
        metrics = getattr(answer, "metrics", None)
        if metrics:
            logger.info("rollout %d: %s", rollout_id, metrics)
        groups = self._groups(getattr(answer, "samples", answer), num_groups)
        for group in groups:
            for place, sample in enumerate(group):
                sample.index = place if sample.index is None else sample.index
                self._check(sample, version)
        return groups

    def _groups(self, given: Any, num_groups: int) -> list[list[Sample]]:
        if isinstance(given, list) and given and all(isinstance(s, Sample) for s in given):
            given = _by_index(given)
        if not isinstance(given, list) or len(given) != num_groups:
            got = f"{len(given)} groups" if isinstance(given, list) else f"{given!r:.80}"
            raise GenerateError(
                f"{HOOK.flag} {self._spec} returned {got}; expected args.rollout_batch_size ="
                f" {num_groups} groups, lists of Samples"
            )
        groups = [_flat(group) for group in given]
        if not all(groups):
            raise GenerateError(f"{HOOK.flag} {self._spec} returned a group without a sample")
        return groups

    def _check(self, sample: Sample, version: int) -> None:
        if sample.status is Status.PENDING and sample.response_length:  # slime's need not say
            sample.status = Status.COMPLETED
        try:
            check_sample(sample, fallback_version=version, log_probs_for=self._log_probs_for)
        except GenerateError as error:
            raise GenerateError(
                f"{HOOK.flag} {self._spec}: sample {sample.index}: {error}"
            ) from None


class EvalFunction:
    """`await function(rollout_id)`: what the function of --eval-function-path returns."""

    def __init__(self, spec: str, args: Any, source: Source) -> None:
        """Raises ConfigError when `spec` names no function."""
        hook = HOOKS["eval_function_path"]
        self.flag, self._args = hook.flag, args
        self._function, self._buffer = load_hook(hook.field, spec), DataBuffer(source)

    async def __call__(self, rollout_id: int) -> Any:
        return await called(
            self._function, self.flag, self._args, rollout_id, self._buffer, evaluation=True
        )


async def called(
    function: Callable[..., Any], flag: str, *given: Any, evaluation: bool = False
) -> Any:
    """What the function returns: an async one on the event loop, a plain one (which may block, and
    run loops of its own) in a daemon thread, so that it never holds up the end of a run."""
    try:
        with told(function, flag):
            return await _answer(function, given, evaluation)
    except SlipstreamError:
        raise
    except Exception as error:
        raise UserFunctionError(in_words(error)) from error


async def _answer(function: Callable[..., Any], given: Sequence[Any], evaluation: bool) -> Any:
    if inspect.iscoroutinefunction(inspect.unwrap(function)):
        return await function(*given, evaluation=evaluation)
    answer = await in_thread(lambda: function(*given, evaluation=evaluation))
    return await answer if isinstance(answer, Awaitable) else answer


def _by_index(samples: list[Sample]) -> list[list[Sample]]:
    groups: dict[int | None, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group_index, []).append(sample)
    return list(groups.values())


def _flat(group: Any) -> list[Sample]:
    """A group whose samples may be lists themselves, of what they fanned out to."""
    if isinstance(group, Sample):
        return [group]
    if not isinstance(group, list | tuple):
        raise GenerateError(f"{HOOK.flag}: a group holds {group!r:.80}; expected Samples")
    return [sample for part in group for sample in _flat(part)]
