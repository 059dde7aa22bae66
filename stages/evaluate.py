"""Evaluation: the same generate and reward stages over fixed data sets, beside training and never
in its way."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence

from configs.schema import EvalConfig
from pipeline.core.deadline import Deadline
from pipeline.core.protocols import Generate, Reward
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import EvalResult, Sample, Status

# training rollouts share the engines: an evaluation must not queue up in front of them
MAX_CONCURRENT_PROMPTS = 64

NO_DEADLINE = Deadline()
NO_VERSION = -1  # of an evaluation without a single generated token


class Evaluator:
    """Scores every data set with the weights that the engines happen to serve; each result says
    which those were."""

    def __init__(
        self,
        generate: Generate,
        reward: Reward,
        datasets: Mapping[str, Sequence[Sample]],
        config: EvalConfig,
        *,
        reward_key: str | None = None,
        deadline: Deadline = NO_DEADLINE,
        time: TimeSource | None = None,
        max_concurrent_prompts: int = MAX_CONCURRENT_PROMPTS,
    ) -> None:
        """`datasets`: name -> one PENDING sample a prompt; they stay as they are.

        `reward_key` picks the score of dict rewards, `deadline` is that of scoring a prompt's
        samples.
        """
        self._generate, self._reward = generate, reward
        self._datasets = {name: list(samples) for name, samples in datasets.items()}
        self._num_samples = config.n_samples_per_eval_prompt
        self._deadline = deadline
        self._reward_key = reward_key
        self._time = time or MonotonicTime()
        self._max_concurrent_prompts = max_concurrent_prompts

    async def evaluate(self, rollout_id: int) -> list[EvalResult]:
        """Every data set once, one after the other.

        A failed sample counts in `num_failed` and in no mean.
        """
        return [
            await self._evaluate_one(name, prompts, rollout_id)
            for name, prompts in self._datasets.items()
        ]

    async def _evaluate_one(
        self, name: str, prompts: Sequence[Sample], rollout_id: int
    ) -> EvalResult:
        started = self._time.now()
        slots = asyncio.Semaphore(self._max_concurrent_prompts)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._one_prompt(place, prompt, slots))
                for place, prompt in enumerate(prompts)
            ]
        samples = [sample for task in tasks for sample in task.result()]
        return summarise(
            name, rollout_id, samples, self._time.now() - started, reward_key=self._reward_key
        )

    async def _one_prompt(
        self, place: int, prompt: Sample, slots: asyncio.Semaphore
    ) -> list[Sample]:
        async with slots:
            samples = await self._generate(
                [self._copy(place, prompt, i) for i in range(self._num_samples)], evaluation=True
            )
            await self._deadline.score(self._reward, samples)
            return samples

    def _copy(self, place: int, prompt: Sample, i: int) -> Sample:
        sample = copy.deepcopy(prompt)
        sample.group_index, sample.index = place, place * self._num_samples + i
        return sample


def summarise(
    name: str,
    rollout_id: int,
    samples: Sequence[Sample],
    seconds: float,
    *,
    reward_key: str | None = None,
) -> EvalResult:
    """Means over the samples that did not fail. Where all did, nothing was measured: an error."""
    good = [
        s
        for s in samples
        if s.status in (Status.COMPLETED, Status.TRUNCATED) and s.reward is not None
    ]
    first = next((s.error for s in samples if s.error), "no reward")
    all_good = len(good) == len(samples)
    versions = [span.version for s in good for span in s.weight_versions]
    return EvalResult(
        name=name,
        rollout_id=rollout_id,
        policy_version_min=min(versions, default=NO_VERSION),
        policy_version_max=max(versions, default=NO_VERSION),
        reward_mean=_mean([s.reward_value(reward_key) for s in good]),
        num_samples=len(samples),
        num_failed=len(samples) - len(good),
        response_length_mean=_mean([s.response_length for s in good]),
        truncated_fraction=_mean([s.status is Status.TRUNCATED for s in good]),
        seconds=seconds,
        error=None if good else f"all {len(samples)} samples failed, the first with: {first}",
        first_failure=first if good and not all_good else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
