"""--num-rollout-workers: what cannot be made elsewhere than in the driver."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import Config


def rollout_workers(config: Config) -> Iterator[str]:
    given = f"--num-rollout-workers {config.cluster.num_rollout_workers}"
    if not config.cluster.num_rollout_workers:
        return
    path = config.rollout.rollout_function_path
    if path is not None:
        yield (
            f"{given} with --rollout-function-path {path}: it makes whole rollouts, and runs where"
            " they are kept, in the driver. Drop one, or write a"
            " --custom-generate-function-path, which runs in the workers"
        )
    if config.distill.use_opd and not config.run.mock:
        yield f"{given} with --use-opd: only the driver asks the teacher. Drop one"
    if config.run.trains_on_kept:
        yield f"{given} with --load-debug-rollout-data: nothing is generated. Drop it"
    elif config.answers_are_given:
        yield (
            f"{given} with --loss-type {config.algorithm.loss_type}: answers are given, none is"
            " generated. Drop it"
        )
