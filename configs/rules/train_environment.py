"""--train-env-vars: what the learner's ranks may be told by themselves, and what not."""

from __future__ import annotations

import json
from collections.abc import Iterator

from configs.schema import Config
from pipeline.core.gpu_environment import ALIKE

_CHOSEN = ("CUDA_VISIBLE_DEVICES",)  # by Ray


def train_environment(config: Config) -> Iterator[str]:
    given = config.cluster.train_env_vars
    if given is None:
        return
    said = f"--train-env-vars {given}"
    try:
        values = json.loads(given)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not all(
        isinstance(value, str | int | float) for value in values.values()
    ):
        yield (
            f"{said}: expected a JSON object of names and values, quoted for the shell, e.g."
            ' \'{"NCCL_DEBUG": "INFO"}\''
        )
        return
    for name in values.keys() & set(_CHOSEN):
        yield f"{said}: {name} is what Ray gave a rank. Drop it"
    if config.cluster.weight_transport == "distributed":
        for name in sorted(values.keys() & set(ALIKE)):
            yield (
                f"{said}: learner and engines are in one NCCL group, and {name} must be the same"
                f" for both. Set it in the shell: export {name}={values[name]}"
            )
