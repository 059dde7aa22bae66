"""Evaluation: the same generate and reward stages over fixed data sets, beside training and never
in its way."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.deadline import Deadline
from pipeline.core.errors import DataError
from pipeline.core.protocols import Generate, Reward
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import EvalResult, Sample, Status

# training rollouts share the engines: an evaluation must not queue up in front of them
MAX_CONCURRENT_PROMPTS = 64

NO_DEADLINE = Deadline()
NO_VERSION = -1  # of an evaluation without a single generated token


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSet:
    """One data set, and how it is evaluated."""

    name: str
    prompts: Sequence[Sample]  # one PENDING sample a prompt; they stay as they are
    reward: Reward
    num_samples: int = 1  # of every prompt
    reward_key: str | None = None  # picks the score of dict rewards
    sampling: Mapping[str, Any] = field(default_factory=dict)  # beyond what evaluations ask for


class Evaluator:
    """Scores every data set with the weights that the engines happen to serve; each result says
    which those were."""

    def __init__(
        self,
        generate: Generate,
        datasets: Sequence[EvalSet],
        *,
        deadline: Deadline = NO_DEADLINE,
        time: TimeSource | None = None,
        max_concurrent_prompts: int = MAX_CONCURRENT_PROMPTS,
        log: Callable[[int, dict[str, dict[str, Any]]], Any] | None = None,
    ) -> None:
        """`deadline`: for scoring one prompt's samples. `log` is shown (rollout_id, of every
        data set the rewards, truncated and samples of those that did not fail)."""
        self._log = log
        self._generate, self._datasets = generate, tuple(datasets)
        self._deadline = deadline
        self._time = time or MonotonicTime()
        self._max_concurrent_prompts = max_concurrent_prompts

    async def evaluate(self, rollout_id: int) -> list[EvalResult]:
        """Evaluates every data set once, one after the other.

        A failed sample counts in `num_failed` and in no mean."""
        seen: dict[str, dict[str, Any]] = {}
        results = [await self._evaluate_one(d, rollout_id, seen) for d in self._datasets]
        if self._log is not None:
            self._log(rollout_id, seen)
        return results

    async def _evaluate_one(
        self, dataset: EvalSet, rollout_id: int, seen: dict[str, dict[str, Any]]
    ) -> EvalResult:
        started = self._time.now()
        slots = asyncio.Semaphore(self._max_concurrent_prompts)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._one_prompt(dataset, place, slots))
                for place in range(len(dataset.prompts))
            ]
        samples = [sample for task in tasks for sample in task.result()]
        good = [s for s in samples if is_good(s)]
        seen[dataset.name] = {
            "rewards": [_number_or_all(s, dataset.reward_key) for s in good],
            "truncated": [s.status is Status.TRUNCATED for s in good],
            "samples": good,
        }
        return summarise(
            dataset.name,
            rollout_id,
            samples,
            self._time.now() - started,
            reward_key=dataset.reward_key,
        )

    async def _one_prompt(
        self, dataset: EvalSet, place: int, slots: asyncio.Semaphore
    ) -> list[Sample]:
        async with slots:
            samples = await self._generate(
                [_copy(dataset, place, i) for i in range(dataset.num_samples)],
                evaluation=True,
                sampling=dataset.sampling,
            )
            await self._deadline.score(dataset.reward, samples)
            return samples


def _copy(dataset: EvalSet, place: int, i: int) -> Sample:
    sample = copy.deepcopy(dataset.prompts[place])
    sample.group_index, sample.index = place, place * dataset.num_samples + i
    return sample


class FunctionEvaluator:
    """Evaluates with a function of the user's (--eval-function-path)."""

    def __init__(
        self,
        evaluate: Callable[[int], Awaitable[Any]],
        flag: str,
        *,
        time: TimeSource | None = None,
        log: Callable[[int, dict[str, dict[str, Any]]], Any] | None = None,
    ) -> None:
        self._evaluate, self._flag = evaluate, flag
        self._time, self._log = time or MonotonicTime(), log

    async def evaluate(self, rollout_id: int) -> list[EvalResult]:
        """Raises DataError where the answer is no dict of data sets with rewards."""
        started = self._time.now()
        answer = await self._evaluate(rollout_id)
        data = getattr(answer, "data", answer)
        if not isinstance(data, dict) or not all(
            isinstance(seen, dict) and "rewards" in seen for seen in data.values()
        ):
            raise DataError(
                f"{self._flag}: the function returned {answer!r:.80}; expected a dict of data sets,"
                ' each {"rewards": [...]}, with "samples" or "truncated"'
            )
        if self._log is not None:
            self._log(rollout_id, data)
        seconds = self._time.now() - started
        return [self._result(name, rollout_id, seen, seconds) for name, seen in data.items()]

    def _result(
        self, name: str, rollout_id: int, seen: dict[str, Any], seconds: float
    ) -> EvalResult:
        rewards = [float(reward) for reward in seen["rewards"]]
        samples: Sequence[Sample] = seen.get("samples") or ()
        versions = [span[0] for s in samples for span in s.weight_versions if len(span) == 3]
        return EvalResult(
            name=name,
            rollout_id=rollout_id,
            policy_version_min=min(versions, default=NO_VERSION),
            policy_version_max=max(versions, default=NO_VERSION),
            reward_mean=_mean(rewards),
            num_samples=len(rewards),
            num_failed=0,
            response_length_mean=_mean([s.response_length for s in samples]),
            truncated_fraction=_mean([bool(t) for t in seen.get("truncated") or ()]),
            seconds=seconds,
            error=None if rewards else "the function gave no reward",
        )


def is_good(sample: Sample) -> bool:
    return sample.status in (Status.COMPLETED, Status.TRUNCATED) and sample.reward is not None


def summarise(
    name: str,
    rollout_id: int,
    samples: Sequence[Sample],
    seconds: float,
    *,
    reward_key: str | None = None,
) -> EvalResult:
    """Means over the samples that did not fail, of rewards over those that are or have a number.
    Where there is none of them, nothing was measured: an error."""
    good = [s for s in samples if is_good(s)]
    first = next((s.error for s in samples if s.error), "no reward")
    all_good = len(good) == len(samples)
    numbers = [s.reward_number(reward_key) for s in good]
    rewards = [number for number in numbers if number is not None]
    versions = [span.version for s in good for span in s.weight_versions]
    return EvalResult(
        name=name,
        rollout_id=rollout_id,
        policy_version_min=min(versions, default=NO_VERSION),
        policy_version_max=max(versions, default=NO_VERSION),
        reward_mean=_mean(rewards),
        num_samples=len(samples),
        num_failed=len(samples) - len(good),
        response_length_mean=_mean([s.response_length for s in good]),
        truncated_fraction=_mean([s.status is Status.TRUNCATED for s in good]),
        seconds=seconds,
        error=_error(len(samples), good, rewards, first),
        first_failure=first if good and not all_good else None,
    )


def _error(
    num_samples: int, good: Sequence[Sample], rewards: Sequence[float], first_failure: str
) -> str | None:
    if not good:
        return f"all {num_samples} samples failed, the first with: {first_failure}"
    if not rewards:
        return (
            f"no reward has a number, the first is {good[0].reward!r:.80}: set --eval-reward-key to"
            " the entry to measure"
        )
    return None


def _number_or_all(sample: Sample, key: str | None) -> Any:
    number = sample.reward_number(key)
    return sample.reward if number is None else number


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
