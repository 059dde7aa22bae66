"""The rollout workers of a run (--num-rollout-workers)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from configs.schema import ClusterConfig
from pipeline.core.protocols import EnginePool
from pipeline.run.lookout import BLOCKED_SECONDS
from pipeline.run.watchdog import Watchdog
from pipeline.wiring.context import RunContext
from pipeline.workers.ray_cluster import RayCluster, ray_address
from pipeline.workers.rollout_group import LeasedPool, RolloutGroup
from pipeline.workers.rollout_launch import launcher
from pipeline.workers.rollout_messages import Bench, WorkerSetup
from pipeline.workers.store_size import object_store_bytes


def make_workers(
    site: RunContext,
    pool: LeasedPool,
    bench_of: Callable[[int], Callable[[Watchdog], Bench]],
    *,
    environment: Callable[[], Mapping[str, str]] | None = None,
) -> RolloutGroup | None:
    """None where the driver makes the groups. `bench_of(number)`: what a worker makes its parts
    with; it goes there by pickle. `environment`: of processes in the run's cluster; None: there is
    no such cluster, and the workers are given one."""
    config, logs = site.config.cluster, site.run_dir.logs
    if not config.num_rollout_workers:
        return None
    cluster = None
    if environment is None:
        cluster = RayCluster(
            ray_address(config),
            devices=0,
            on_gpu=False,
            object_store_bytes=object_store_bytes(site.config),
        )
        environment = cluster.temporary_environment

    def log_path(number: int) -> Path:
        return (logs / f"rollout-worker-{number}.log").absolute()

    def setup_of(number: int) -> WorkerSetup:
        return WorkerSetup(
            number=number,
            make_bench=bench_of(number),
            folder=str(Path.cwd()),
            log_path=str(log_path(number)),
            blocked_seconds=BLOCKED_SECONDS,
        )

    return RolloutGroup(
        launcher(setup_of, environment),
        pool,
        num_workers=config.num_rollout_workers,
        max_restarts=config.rollout_worker_restarts,
        log_path=log_path,
        cluster=cluster,
    )


def share_of(cluster: ClusterConfig) -> int:
    """How many requests one worker may have in flight at an engine."""
    return max(1, cluster.sglang_server_concurrency // cluster.num_rollout_workers)


def oldest_version(pool: EnginePool) -> int:
    """The oldest policy version that any engine serves."""
    return min(pool.version_of(endpoint) for endpoint in pool.endpoints)
