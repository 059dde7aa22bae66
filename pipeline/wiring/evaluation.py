"""The evaluation of a run: its data sets, judged before anything starts, and who scores them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from configs.hooks import load_hook
from configs.rules.eval_datasets import EvalDataset, eval_datasets
from configs.schema import Config, RewardConfig
from configs.schema.data import is_procedural
from pipeline.core.deadline import Deadline
from pipeline.core.protocols import Source
from pipeline.core.types import Sample
from pipeline.wiring.backend import Backend
from stages.evaluate import MAX_CONCURRENT_PROMPTS, EvalSet, Evaluator, FunctionEvaluator
from stages.generate.rollout_function import EvalFunction
from stages.reward import RewardStage, build_reward
from stages.source import LIMIT_FLAG, Row, build_source, scored_by


class Scorers:
    """Reward stages by what they are asked for: training's own, and those of data sets that are
    scored otherwise."""

    def __init__(self, config: RewardConfig, args: SimpleNamespace) -> None:
        self._args = args
        self._stages: dict[RewardConfig, RewardStage] = {}
        self.training = self.of(config)

    def of(self, config: RewardConfig) -> RewardStage:
        """Raises ConfigError when a custom function cannot be loaded."""
        if config not in self._stages:
            self._stages[config] = build_reward(config, self._args)
        return self._stages[config]

    async def close(self) -> None:
        for stage in self._stages.values():
            await stage.close()


def build_evaluator(
    config: Config,
    args: SimpleNamespace,
    backend: Backend,
    scorers: Scorers,
    source: Source | None,
    *,
    max_concurrent_prompts: int = MAX_CONCURRENT_PROMPTS,
) -> Evaluator | FunctionEvaluator | None:
    """`source`: of the run's prompts, which a function of the user's is given.

    None where there is nothing to evaluate, or nobody to generate. Raises ConfigError,
    DataError."""
    if not config.eval.eval_interval or config.run.trains_on_kept:
        return None
    path = config.eval.eval_function_path
    if path is not None:
        assert source is not None
        evaluation = EvalFunction(path, with_tokenizer(args, backend), source)
        return FunctionEvaluator(evaluation, evaluation.flag, log=_log(config, args))
    return Evaluator(
        backend.generate,
        [_set(config, backend, scorers, dataset) for dataset in eval_datasets(config)],
        max_concurrent_prompts=max_concurrent_prompts,
        deadline=Deadline(*config.eval.episode_deadline(config.rollout)),
        log=_log(config, args),
    )


def with_tokenizer(args: SimpleNamespace, backend: Backend) -> SimpleNamespace:
    """What a function is given that makes whole rollouts, or evaluations."""
    return SimpleNamespace(**{**vars(args), "tokenizer": backend.tokenizer})


def _log(config: Config, args: SimpleNamespace) -> Callable[..., Any] | None:
    """--custom-eval-rollout-log-function-path."""
    spec = config.run.custom_eval_rollout_log_function_path
    if spec is None:
        return None
    function = load_hook("custom_eval_rollout_log_function_path", spec)
    return lambda rollout_id, data: function(rollout_id, args, data, {})


def _set(config: Config, backend: Backend, scorers: Scorers, dataset: EvalDataset) -> EvalSet:
    path = dataset.generate_function_path
    if path is not None:
        load_hook("custom_generate_function_path", path)  # what is wrong with it is said now
    longest = dataset.as_rollout(config).rollout_max_prompt_len
    source = build_source(
        dataset.path,
        dataset.data,
        1,
        longest if backend.counts_tokens else None,
        backend.tokenizer,
        judge=_judge(dataset),
        held_out=True,
        limit_flag="--eval-max-prompt-len" if config.eval.eval_max_prompt_len else LIMIT_FLAG,
    )
    # a file is evaluated on as a whole
    limit = config.eval.eval_max_prompts if is_procedural(dataset.path) else None
    prompts = [group[0] for group in source.all_prompts(limit)]
    return EvalSet(
        name=dataset.name,
        prompts=[_own(prompt, dataset) for prompt in prompts],
        reward=scorers.of(dataset.reward),
        num_samples=dataset.num_samples,
        reward_key=dataset.reward.reward_key,
        sampling=dataset.sampling,
        pass_reward=config.eval.eval_pass_reward,
    )


def _judge(dataset: EvalDataset) -> Callable[[Row], None]:
    """Rows are judged with the metadata that they will have."""
    judge = scored_by(dataset.reward)
    return lambda row: judge(replace(row, metadata={**row.metadata, **dataset.metadata}))


def _own(prompt: Sample, dataset: EvalDataset) -> Sample:
    prompt.metadata.update(copy.deepcopy(dict(dataset.metadata)))
    prompt.generate_function_path = dataset.generate_function_path or prompt.generate_function_path
    return prompt
