"""Rules about what is evaluated on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from configs.rules.eval_datasets import EvalDataset, eval_datasets
from configs.rules.inputs import check_data, is_data
from configs.rules.judge import why_no_judge
from configs.rules.rewards import may_reward, why_missing
from configs.schema import Config
from configs.schema.data import is_procedural
from configs.schema.reward import COMPARING, RM_TYPES
from pipeline.core.errors import ConfigError


def evaluation(config: Config) -> Iterator[str]:
    words, file, interval = (
        config.eval.eval_prompt_data,
        config.eval.eval_config,
        config.eval.eval_interval,
    )
    if config.eval.eval_function_path:
        if not interval:
            yield (
                f"--eval-function-path {config.eval.eval_function_path} without --eval-interval:"
                " it would never be called. Add --eval-interval N, or drop it"
            )
        return
    if interval and not (words or file):
        yield (
            f"--eval-interval {interval} without --eval-prompt-data: there is nothing to evaluate"
            " on. Add --eval-prompt-data NAME PATH, or --eval-config FILE"
        )
    yield from _pairs(words)
    try:
        datasets = eval_datasets(config)
    except ConfigError as error:
        yield str(error)
        return
    yield from _together(datasets)
    for dataset in datasets if config.eval.eval_interval else ():
        yield from _scored(config, dataset)


def _pairs(words: Sequence[str]) -> Iterator[str]:
    if len(words) > 1 and len(words) % 2:
        yield (
            f"--eval-prompt-data {' '.join(words)}: expected pairs NAME PATH NAME PATH ..., or one"
            f" PATH; got {len(words)} words"
        )
    names = words[::2] if len(words) > 1 else ()
    if files := [name for name in names if is_data(name)]:
        yield (
            f"--eval-prompt-data {' '.join(words)}: {files[0]} stands where a name belongs;"
            " expected pairs NAME PATH NAME PATH ..., e.g. aime aime.jsonl"
        )


def _together(datasets: Sequence[EvalDataset]) -> Iterator[str]:
    names = [dataset.name for dataset in datasets]
    if repeated := {name for name in names if names.count(name) > 1}:
        yield (
            f"{datasets[0].flag}: {min(repeated)} twice; its results would be mixed up. Use"
            " different names"
        )
    for dataset in datasets:
        yield from check_data(dataset.flag, dataset.path)


def _scored(config: Config, dataset: EvalDataset) -> Iterator[str]:
    """Can its answers be scored?"""
    scorer, where = dataset.reward.rm_type, f"{dataset.flag}: data set {dataset.name}"
    procedural = is_procedural(dataset.path)
    if dataset.reward.custom_rm_path:
        return
    if scorer is None:
        function = dataset.generate_function_path or config.rollout.custom_generate_function_path
        plays = config.agent.has_agent or config.rollout.environment_path is not None
        rewarded = may_reward(function) or (plays and function is None)
        if not (procedural or config.run.mock or rewarded):
            yield (
                f"{where} says nothing of rewards, so nothing can be measured: set --rm-type"
                f" ({', '.join(RM_TYPES)}) or --custom-rm-path"
            )
        return
    if missing := why_missing(scorer):
        yield f"{where}, rm_type {scorer}: {missing}"
    if scorer == "judge" and (missing := why_no_judge(dataset.reward)):
        yield f"{where}, rm_type judge: {missing}"
    if scorer == "remote_rm" and dataset.reward.rm_url is None:
        yield f"{where}, rm_type remote_rm: set --rm-url"
    if scorer in COMPARING and not procedural and dataset.data.label_key is None:
        yield (
            f"{where}, rm_type {scorer}, compares with a label: name its column by"
            " --eval-label-key, or --label-key"
        )
