"""Rules about what is on a device at once: micro-batches, and who leaves it when."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import Config


def memory(config: Config) -> Iterator[str]:
    yield from _micro_batches(config)
    yield from _offload(config)


def _micro_batches(config: Config) -> Iterator[str]:
    a = config.algorithm
    wide = a.log_probs_max_tokens_per_gpu
    if wide and a.samples_of_a_micro_batch:
        yield (
            f"--log-probs-max-tokens-per-gpu {wide} without --use-dynamic-batch-size: micro-batches"
            " are counted in samples. Drop --micro-batch-size, or drop it"
        )
    elif wide and wide < a.max_tokens_per_gpu:
        yield (
            f"--log-probs-max-tokens-per-gpu {wide} below --max-tokens-per-gpu"
            f" {a.max_tokens_per_gpu}: a pass without gradients needs less memory than one with"
            " them. Raise it, or drop it"
        )


def _offload(config: Config) -> Iterator[str]:
    c = config.cluster
    given = {
        "--offload": c.offload,
        "--offload-train": c.offload_train,
        "--offload-rollout": c.offload_rollout,
    }
    for flag in (flag for flag, on in given.items() if on and not c.colocate):
        yield (
            f"{flag} without --colocate: learner and engines have devices of their own, nobody"
            " needs the room. Add --colocate, or drop it"
        )
