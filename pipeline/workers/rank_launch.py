"""The learner's ranks as they are launched: their environment, their order, their seats."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core.devices import has_gpu, num_devices
from pipeline.core.gpu_environment import alike, of_rank
from pipeline.schedule.placement import Place
from pipeline.workers.pools import Berth, Pools, Where, actor_environment
from pipeline.workers.rank_actor import RankActor, Seat
from pipeline.workers.rank_senders import SENDING
from stages.learn.settings import LearnerSettings


def make_actors(settings: LearnerSettings, pools: Pools) -> list[Any]:
    """One Ray actor a rank, in the learner's berths, that have no seats yet."""
    import ray

    env = {
        **actor_environment(pools.cluster.temporary_environment()),
        **(_on_gpu(settings, os.environ) if on_gpu(settings) else _on_cpu(settings)),
        **settings.cluster.train_environment,
    }
    remote = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={SENDING: 1})(
        RankActor
    )
    return [
        remote.options(**berth.options, runtime_env={"env_vars": env}).remote(settings)
        for berth in pools.learner_berths()
    ]


def _on_cpu(settings: LearnerSettings) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(settings.cluster.cpu_threads_per_actor),
        "TORCHDYNAMO_DISABLE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        # a thread that spins for one without a core holds up both, and the engines
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _on_gpu(settings: LearnerSettings, shell: Mapping[str, str]) -> dict[str, str]:
    """Nodes are taken to have as many cores for a device as the driver's own."""
    megatron = settings.megatron if settings.model.train_backend == "megatron" else None
    cpus, devices = os.cpu_count() or 1, num_devices()
    return {
        **of_rank(shell, megatron=megatron, cpus=cpus, devices=devices),
        **alike(shell, settings.config.sglang),
    }


def in_order(found: Sequence[Where], berths: Sequence[Berth]) -> list[int]:
    """Which of the actors, that are there, is rank 0, 1, ...: node by node in the plan's order, by
    device on a node."""
    nodes = {node: i for i, node in enumerate(dict.fromkeys(b.place.node.id for b in berths))}
    return sorted(range(len(found)), key=lambda i: (nodes[found[i].node], _device(found[i])))


def seat(
    settings: LearnerSettings, rank: int, where: Where, first: Place, *, spans_nodes: bool
) -> Seat:
    """`first`: the place of rank 0; every node has as many ranks."""
    cluster = settings.cluster
    pinned = cluster.cpu_affinity and not on_gpu(settings)
    width, local = cluster.cpu_threads_per_actor, rank % first.devices
    return Seat(
        rank=rank,
        address=where.address if spans_nodes else "127.0.0.1",
        cores=(local * width, width) if pinned else None,
    )


def on_gpu(settings: LearnerSettings) -> bool:
    return has_gpu() if settings.model.device == "auto" else settings.model.device == "cuda"


def _device(where: Where) -> tuple[int, str]:
    """Devices in the order of their numbers; those that have a name instead (MIG) by that."""
    gpu = where.gpus[0] if where.gpus else ""
    return (int(gpu) if gpu.isdigit() else 0, gpu)
