"""How long engines may take: to become ready, and to answer."""

from __future__ import annotations

from configs.rules.eval_datasets import eval_datasets
from configs.schema import Config, RolloutConfig
from pipeline.wiring.devices import device_of

START_SECONDS = {"cpu": 300.0, "cuda": 1800.0}  # the first start on a GPU compiles kernels


def requests_of(config: Config) -> list[RolloutConfig]:
    """How long requests are: training's, and those of every data set that is evaluated on."""
    datasets = eval_datasets(config) if config.eval.eval_interval else ()
    return [config.rollout, *(dataset.as_rollout(config) for dataset in datasets)]


def request_seconds(config: Config) -> float:
    """The deadline of one request to an engine, of the longest that there are."""
    return max(rollout.request_seconds for rollout in requests_of(config))


def engine_start_seconds(config: Config) -> float:
    given = config.cluster.engine_start_timeout_seconds
    return START_SECONDS[device_of(config)] if given is None else given
