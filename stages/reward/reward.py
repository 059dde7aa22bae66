"""The reward stage: which scorer, where it runs, what happens when it fails."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from configs.hooks import HOOKS
from configs.schema.reward import RM_TYPES, RewardConfig
from pipeline.core.errors import ConfigError, RewardError
from pipeline.core.tally import Tally
from pipeline.core.types import Sample, Status
from pipeline.core.user_errors import in_words
from stages.reward.code import CodeReward
from stages.reward.judge import Judge, build_judge
from stages.reward.judgement import judged
from stages.reward.pool import Overdue, WorkerPool
from stages.reward.remote import RemoteReward
from stages.reward.scorers import CHEAP, SCORERS, prepare
from stages.reward.scorers.boxed import PROMPT
from stages.reward.user_function import UserError, UserFunction
from stages.reward.worker import HOOK

logger = logging.getLogger(__name__)

# groups in a row of which a scorer judged no answer in time: then it is the scorer that hangs
HANGS_AFTER = 4
REMOTE, JUDGE, CODE = "remote_rm", "judge", "code"  # those that are no plain functions
# of args: functions that read sample.reward, whatever it is
_READERS = ("custom_reward_post_process_path", "custom_convert_samples_to_train_data_path")
UNJUDGED = "unjudged"  # the key in sample.metadata that says why an answer counts as wrong


class RewardStage:
    """Implements `Reward`. Scores in place.

    A sample whose scorer failed becomes FAILED with `error`, never reward 0. An answer that got no
    score in time is a wrong one: to leave it out would favour prompts whose answers are easily
    judged. It gets 0, and the reason in metadata["unjudged"]. A sample that has a reward (set by a
    custom generate function, or scored before its neighbour was generated again) keeps it.

    Which scorer: the sample's `custom_rm_path`, else --custom-rm-path, else the sample's
    metadata["rm_type"], else --rm-type, else reasoning_gym for its own prompts. remote_rm, judge
    and code are none of the plain functions of stages.reward.scorers: they ask a server, or a
    sandbox."""

    def __init__(self, config: RewardConfig, args: SimpleNamespace) -> None:
        self._config, self._args = config, args
        # do functions of the user's make the numbers that are trained on?
        self._is_read = any(getattr(args, name, None) for name in _READERS)
        self._workers = WorkerPool(
            config.reward_num_workers or max(1, min(8, (os.cpu_count() or 1) // 2))
        )
        self._remote = RemoteReward(config.rm_url, config.reward_timeout_seconds)
        self._judge: Judge | None = None
        self._code = CodeReward(config)
        self._functions: dict[str, UserFunction] = {}
        # by scorer: the groups of the answers that got no score since the last that got one
        self._overdue: defaultdict[str, set[int | None]] = defaultdict(set)
        self._unjudged: dict[str, Tally] = _ByScorer()
        if config.custom_rm_path:
            self._load(config.custom_rm_path)

    async def __call__(self, samples: Sequence[Sample]) -> None:
        alive = [s for s in samples if s.status is not Status.FAILED]
        if self._config.group_rm:
            # a group reward compares all samples of the group: with one missing there is none
            if len(alive) == len(samples):
                await self._score_group(alive)
            return
        if all(self._is_at_hand(s) for s in alive):
            # nothing waits: a task a sample would cost more than the scoring
            for sample in alive:
                await self._score(sample)
            return
        async with asyncio.TaskGroup() as group:
            for sample in alive:
                group.create_task(self._score(sample))

    async def close(self) -> None:
        await self._remote.close()
        if self._judge is not None:
            await self._judge.close()
        await self._code.close()
        await asyncio.to_thread(self._workers.close)

    async def _score(self, sample: Sample) -> None:
        try:
            if sample.reward is None:
                sample.reward = await self.reward_of(sample)
            sample.reward = self._judged(sample.reward)
        except Exception as error:  # a user's scorer may raise anything; CancelledError passes
            _fail(sample, error)

    async def _score_group(self, samples: Sequence[Sample]) -> None:
        path = self._config.custom_rm_path
        try:
            if path is None:
                raise RewardError(
                    "--group-rm needs --custom-rm-path: built-in scorers take one sample"
                )
            rewards = await self._load(path)(list(samples))
            if not isinstance(rewards, list | tuple):
                raise RewardError(
                    f"{path} returned {rewards!r:.80} for a group of {len(samples)} samples:"
                    " expected a list with a reward for each"
                )
            if len(rewards) != len(samples):
                raise RewardError(
                    f"{path} returned {len(rewards)} rewards for a group of {len(samples)} samples"
                )
            for sample, reward in zip(samples, rewards, strict=True):
                sample.reward = self._judged(reward)
        except Exception as error:
            for sample in samples:
                _fail(sample, error)

    async def reward_of(self, sample: Sample) -> Any:
        """As its scorer gives it: not judged yet, and not written into the sample. Raises what the
        scorer raises."""
        path = sample.custom_rm_path or self._config.custom_rm_path
        name: str = path or self._built_in_name(sample)
        try:
            reward = await (self._load(path)(sample) if path else self._built_in(name, sample))
        except Overdue as error:
            return self._wrong(name, sample, error)
        self._overdue[name].clear()
        return reward

    def _is_at_hand(self, sample: Sample) -> bool:
        """Is it scored by a plain function, here and at once?"""
        if sample.custom_rm_path or self._config.custom_rm_path:
            return False
        return (sample.metadata.get("rm_type") or self._config.rm_type) in CHEAP

    def _built_in_name(self, sample: Sample) -> str:
        name: Any = sample.metadata.get("rm_type") or self._config.rm_type
        if name is None and "reasoning_gym" in sample.metadata:
            name = "reasoning_gym"
        if name not in RM_TYPES:
            raise RewardError(
                f"no scorer for sample {sample.index}: rm_type {name!r}, expected one of"
                f" {', '.join(RM_TYPES)}"
            )
        return str(name)

    async def _built_in(self, name: str, sample: Sample) -> Any:
        if name == REMOTE:
            return await self._remote(sample)
        if name == JUDGE:
            if self._judge is None:
                self._judge = build_judge(self._config, self._args)
            return await self._judge(sample)
        if name == CODE:
            return await self._code(sample)
        scorer = SCORERS[name]
        metadata = {**sample.metadata, "__index__": sample.index}
        if isinstance(sample.prompt, str):
            metadata[PROMPT] = sample.prompt
        arguments = (sample.response, sample.label, metadata)
        if name in CHEAP:
            return scorer(*arguments)
        score: float | dict[str, Any] = await self._workers.run(
            scorer, arguments, self._config.reward_timeout_seconds, prepare=(prepare, (name,))
        )
        return score

    def _wrong(self, name: str, sample: Sample, error: Overdue) -> Any:
        """The reward of an answer that nobody could judge in time; the error where the scorer
        judges none any more."""
        groups = self._overdue[name]
        groups.add(sample.group_index)
        if len(groups) >= HANGS_AFTER:
            raise TimeoutError(
                f"{error}; nor did the answers of {len(groups) - 1} other groups before it: it is"
                f" {name} that hangs"
            ) from error
        self._unjudged[name].add(f"sample {sample.index}: {error}")
        self._unjudged[name].say()
        sample.metadata[UNJUDGED] = str(error)
        key = self._config.reward_key
        return 0.0 if key is None else {key: 0.0}

    def _judged(self, reward: Any) -> Any:
        return judged(
            reward,
            key=self._config.reward_key,
            threshold=self._config.reward_threshold,
            is_read=self._is_read,
        )

    def _load(self, path: str) -> UserFunction:
        if path not in self._functions:
            spec = HOOKS[HOOK].named(path, group=self._config.group_rm)
            self._functions[path] = UserFunction(
                spec, self._args, self._workers, self._config.reward_timeout_seconds
            )
        return self._functions[path]


class _ByScorer(dict[str, Tally]):
    """One tally a scorer, made when it is asked for."""

    def __missing__(self, name: str) -> Tally:
        self[name] = Tally(logger, "answer", f"counted as wrong, not judged in time by {name}")
        return self[name]


def _fail(sample: Sample, error: Exception) -> None:
    sample.status, sample.reward = Status.FAILED, None
    sample.error = str(error) if isinstance(error, UserError) else in_words(error)


def build_reward(config: RewardConfig, args: SimpleNamespace) -> RewardStage:
    """Raises ConfigError when the custom function cannot be loaded, or the flags contradict each
    other."""
    if config.group_rm and not config.custom_rm_path:
        raise ConfigError("--group-rm needs --custom-rm-path: built-in scorers take one sample")
    if config.reward_num_workers is not None and config.reward_num_workers < 1:
        raise ConfigError(
            f"--reward-num-workers {config.reward_num_workers}: at least 1 (this machine has"
            f" {os.cpu_count()} cores)"
        )
    return RewardStage(config, args)
