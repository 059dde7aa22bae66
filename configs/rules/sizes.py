"""Rules about numbers: of samples in a step, of devices, of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from configs.schema import Config
from pipeline.core.devices import why_no_gpu, why_unused


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
    if config.model.device == "auto" and not config.run.mock and (unused := why_unused()):
        yield f"--device auto: {unused}. Mend that, or say --device cpu to run without"
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
    for kind, rollout in (
        ("rollout", config.rollout),
        ("eval", config.eval.as_rollout(config.rollout)),
    ):
        prompt, context = rollout.rollout_max_prompt_len, rollout.rollout_max_context_len
        if prompt and context and prompt >= context:
            yield (
                f"--{kind}-max-prompt-len {prompt} with --{kind}-max-context-len {context}: such a"
                " prompt leaves no room for a response"
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
    """Some divisors to choose from, e.g. `1, 2, 4, ..., 64`."""
    all_of_them = [d for d in range(1, number + 1) if number % d == 0]
    return (
        ", ".join(map(str, all_of_them))
        if len(all_of_them) <= 9
        else ", ".join(map(str, [*all_of_them[:4], "...", *all_of_them[-4:]]))
    )
