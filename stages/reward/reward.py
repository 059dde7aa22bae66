"""The reward stage: which scorer, where it runs, what happens when it fails."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from numbers import Real
from types import SimpleNamespace
from typing import Any

from configs.hooks import load_hook
from configs.schema import RewardConfig
from pipeline.core.errors import ConfigError, RewardError
from pipeline.core.types import Sample, Status
from pipeline.core.user_errors import in_words, note_place
from stages.reward.pool import WorkerPool, in_thread
from stages.reward.scorers import CHEAP, SCORERS


class RewardStage:
    """Implements `Reward`. Scores in place; a sample whose scorer failed becomes FAILED with
    `error`, never reward 0. A sample that has a reward (set by a custom generate function, or
    scored before its neighbour was generated again) keeps it.

    Which scorer: the sample's `custom_rm_path`, else --custom-rm-path, else the sample's
    metadata["rm_type"], else --rm-type, else reasoning_gym for its own prompts."""

    def __init__(self, config: RewardConfig, args: SimpleNamespace) -> None:
        self._config, self._args = config, args
        self._workers = WorkerPool(config.reward_num_workers)
        self._functions: dict[str, Callable[..., Any]] = {}
        if config.custom_rm_path:
            self._load(config.custom_rm_path)

    async def __call__(self, samples: Sequence[Sample]) -> None:
        alive = [s for s in samples if s.status is not Status.FAILED]
        if self._config.group_rm:
            # a group reward compares all samples of the group: with one missing there is none
            if len(alive) == len(samples):
                await self._score_group(alive)
            return
        async with asyncio.TaskGroup() as group:
            for sample in alive:
                group.create_task(self._score(sample))

    async def close(self) -> None:
        await asyncio.to_thread(self._workers.close)

    async def _score(self, sample: Sample) -> None:
        try:
            sample.reward = self._checked(
                await self._reward_of(sample) if sample.reward is None else sample.reward
            )
        except Exception as error:  # a user's scorer may raise anything; CancelledError passes
            _fail(sample, error)

    async def _score_group(self, samples: Sequence[Sample]) -> None:
        path = self._config.custom_rm_path
        try:
            if path is None:
                raise RewardError(
                    "--group-rm needs --custom-rm-path: built-in scorers take one sample"
                )
            rewards = list(await self._call(self._load(path), list(samples)))
            if len(rewards) != len(samples):
                raise RewardError(
                    f"{path} returned {len(rewards)} rewards for a group of {len(samples)} samples"
                )
            for sample, reward in zip(samples, rewards, strict=True):
                sample.reward = self._checked(reward)
        except Exception as error:
            for sample in samples:
                _fail(sample, error)

    async def _reward_of(self, sample: Sample) -> Any:
        path = sample.custom_rm_path or self._config.custom_rm_path
        if path:
            return await self._call(self._load(path), sample)
        name = (
            sample.metadata.get("rm_type")
            or self._config.rm_type
            or ("reasoning_gym" if "reasoning_gym" in sample.metadata else None)
        )
        if name not in SCORERS:
            raise RewardError(
                f"no scorer for sample {sample.index}: rm_type {name!r}, expected one of"
                f" {', '.join(SCORERS)}"
            )
        scorer, arguments = (
            SCORERS[name],
            (sample.response, sample.label, {**sample.metadata, "__index__": sample.index}),
        )
        if name in CHEAP:
            return scorer(*arguments)
        return await self._workers.run(scorer, arguments, self._config.reward_timeout_seconds)

    async def _call(self, function: Callable[..., Any], subject: Any) -> Any:
        """A user's function: async ones run here, plain ones in a thread (they may block)."""
        seconds = self._config.reward_timeout_seconds
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                if inspect.iscoroutinefunction(function):
                    return await function(self._args, subject)
                result = await in_thread(function, self._args, subject)
                return await result if isinstance(result, Awaitable) else result
        except TimeoutError as error:
            if deadline.expired():
                raise TimeoutError(
                    f"no score after {seconds:g} s (--reward-timeout-seconds)"
                ) from error
            raise
        except Exception as error:
            note_place(error, function)
            raise

    def _checked(self, reward: Any) -> float | dict[str, float]:
        if not isinstance(reward, Mapping):
            return self._number(reward)
        key = self._config.reward_key or "score"
        if key not in reward:
            raise RewardError(
                f"the reward has no {key!r}, only {', '.join(map(repr, reward))}: set --reward-key"
                " to the entry to train on"
            )
        self._number(reward[key])
        return {str(k): self._number(v) if isinstance(v, Real) else v for k, v in reward.items()}

    def _number(self, value: Any) -> float:
        if not isinstance(value, Real) or not math.isfinite(value):
            raise RewardError(
                f"the reward is {value!r}: expected a finite number, or a dict of them"
            )
        number = float(value)
        return number if number >= self._config.reward_threshold or number < 0 else 0.0

    def _load(self, path: str) -> Callable[..., Any]:
        if path not in self._functions:
            self._functions[path] = load_hook("custom_rm_path", path)
        return self._functions[path]


def _fail(sample: Sample, error: Exception) -> None:
    sample.status, sample.reward = Status.FAILED, None
    sample.error = in_words(error)


def build_reward(config: RewardConfig, args: SimpleNamespace) -> RewardStage:
    """Raises ConfigError when the custom function cannot be loaded, or the flags contradict each
    other."""
    if config.group_rm and not config.custom_rm_path:
        raise ConfigError("--group-rm needs --custom-rm-path: built-in scorers take one sample")
    if config.reward_num_workers < 1:
        raise ConfigError(
            f"--reward-num-workers {config.reward_num_workers}: at least 1 (this machine has"
            f" {os.cpu_count()} cores)"
        )
    return RewardStage(config, args)
