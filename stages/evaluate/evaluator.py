"""Evaluation: the same generate and reward stages over fixed data sets, beside training and never
in its way."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.deadline import Deadline
from pipeline.core.protocols import Generate, Reward
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import EvalResult, Sample, Status
from stages.evaluate.summary import is_good, summarise

# training rollouts share the engines: an evaluation must not queue up in front of them
MAX_CONCURRENT_PROMPTS = 64

NO_DEADLINE = Deadline()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSet:
    """One data set, and how it is evaluated."""

    name: str
    prompts: Sequence[Sample]  # one PENDING sample a prompt; they stay as they are
    reward: Reward
    num_samples: int = 1  # of every prompt
    reward_key: str | None = None  # picks the score of dict rewards
    pass_reward: float = 1.0  # from which on a sample is right, for pass@k
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
            pass_reward=dataset.pass_reward,
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


def _number_or_all(sample: Sample, key: str | None) -> Any:
    number = sample.reward_number(key)
    return sample.reward if number is None else number
