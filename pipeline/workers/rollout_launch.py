"""How a rollout worker's actor is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.workers.pools import actor_environment
from pipeline.workers.rollout_messages import WorkerSetup


def launcher(
    setup_of: Callable[[int], WorkerSetup], environment: Callable[[], Mapping[str, str]]
) -> Callable[[int], Any]:
    """`setup_of(number)`, `environment()`: asked when a worker is started; Ray must run then.

    Workers count as no CPU: they wait, mostly, and a cluster of a run's own has only as many as
    learner and engines need."""

    def launch(number: int) -> Any:
        import ray

        from pipeline.workers.rollout_worker import RolloutWorker

        remote = ray.remote(
            num_cpus=0,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"watch": 1},
            scheduling_strategy="SPREAD",
        )(RolloutWorker)
        env = {
            **actor_environment(environment()),
            "CUDA_VISIBLE_DEVICES": "",
            # a thread that spins for one without a core holds up both
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        return remote.options(runtime_env={"env_vars": env}).remote(setup_of(number))

    return launch
