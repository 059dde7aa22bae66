"""benchmarks/orchestration.py with rollout workers: the same load, made in Ray actors, against bare
clients in as many processes."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import psutil
import uvloop

from benchmarks.orchestration_load import Load, Prompts, Running, bare, clock_of, take_all
from buffers.encoded import encode_group
from buffers.replay_buffer import ReplayBuffer
from configs.schema import Config, RewardConfig, flat_args
from pipeline.run.group_maker import GroupMaker, MakeGroup
from pipeline.run.outcome import collect_rarely
from pipeline.run.producer import Producer
from pipeline.run.watchdog import Watchdog
from pipeline.workers.ray_cluster import RayCluster
from pipeline.workers.rollout_group import RolloutGroup
from pipeline.workers.rollout_launch import launcher
from pipeline.workers.rollout_messages import Bench, WorkerSetup
from stages.engine.mock import MockTokenizer
from stages.engine.pool import SGLangPool
from stages.engine.remote_pool import RemotePool
from stages.filter import build_filter
from stages.generate.client import SGLangClient
from stages.generate.generate import GenerateStage
from stages.reward import build_reward

STORE_BYTES = 1 << 30


def bench_of(load: Load, num_workers: int, watchdog: Watchdog) -> Bench:
    """The parts of a worker: those of a real run's."""
    args = flat_args(Config(rollout=load.rollout_config))
    pool = RemotePool(concurrency=load.concurrency // num_workers)
    client = SGLangClient(pool, load.rollout_config, experts_shape=load.experts_shape)
    reward = build_reward(RewardConfig(rm_type="exact_match"), args)
    make = GroupMaker(
        generate=GenerateStage(client, MockTokenizer(), load.rollout_config, args),
        reward=reward,
        keep=build_filter(None, args),
        encode=encode_group,
        group_max_retries=0,
        watchdog=watchdog,
    )

    async def close() -> None:
        await client.close()
        await reward.close()

    return Bench(pool=pool, make=make, close=close)


def pipeline_with_workers(load: Load, endpoint: str, num_workers: int) -> dict[str, float]:
    """The figures of one round, without the start of Ray and of the workers."""
    return uvloop.run(_pipeline(load, endpoint, num_workers))


async def _pipeline(load: Load, endpoint: str, num_workers: int) -> dict[str, float]:
    pool = SGLangPool(
        [Running(endpoint)], concurrency=load.concurrency, max_restarts=0, start_timeout_seconds=1
    )
    await pool.start()
    clock, asynchronous = clock_of(load)
    make, pids, close = await _making(load, pool, num_workers)
    try:
        with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as folder:
            buffer = ReplayBuffer(Path(folder), asynchronous, clock)
            producer = Producer(source=Prompts(load), make=make, buffer=buffer, clock=clock)
            meter = Meter(pids)
            running = asyncio.create_task(producer.run())
            taken = await take_all(buffer, clock, producer)
            figures = meter.figures(taken)
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            buffer.close()
    finally:
        await close()
    return figures


async def _making(
    load: Load, pool: SGLangPool, num_workers: int
) -> tuple[MakeGroup, list[int], Callable[[], Awaitable[None]]]:
    """What makes the groups, in which processes, and how that is ended. No workers: the driver."""
    if not num_workers:
        bench = bench_of(load, 1, Watchdog())
        bench.pool.follow(pool.view())
        return bench.make, [], bench.close
    cluster = RayCluster(None, devices=0, on_gpu=False, object_store_bytes=STORE_BYTES)

    def setup_of(number: int) -> WorkerSetup:
        return WorkerSetup(
            number=number,
            make_bench=partial(bench_of, load, num_workers),
            folder=str(Path.cwd()),
            log_path=None,
            blocked_seconds=60.0,
        )

    group = RolloutGroup(
        launcher(setup_of, cluster.temporary_environment),
        pool,
        num_workers=num_workers,
        max_restarts=0,
        cluster=cluster,
    )
    await group.start()
    return group, group.pids, group.close


class Meter:
    """CPU time of this process and of its workers, and what this one reads and writes."""

    def __init__(self, pids: list[int]) -> None:
        self._workers = [psutil.Process(pid) for pid in pids]
        self._began = self._now()

    def figures(self, num_samples: int) -> dict[str, float]:
        wall, driver, workers, io = (
            after - before for after, before in zip(self._now(), self._began, strict=True)
        )
        return {
            "samples_per_second": num_samples / wall,
            "driver_cpu_microseconds_per_sample": driver / num_samples * 1e6,
            "cpu_microseconds_per_sample": (driver + workers) / num_samples * 1e6,
            "driver_io_bytes_per_sample": io / num_samples,
            "wall_seconds": wall,
        }

    def _now(self) -> tuple[float, float, float, float]:
        workers = sum(sum(p.cpu_times()[:2]) for p in self._workers)
        return time.perf_counter(), time.process_time(), workers, _io_bytes()


def _io_bytes() -> float:
    """That went through read and write calls of this process, each of which copies them."""
    counted = psutil.Process().io_counters()
    return float(getattr(counted, "read_chars", 0) + getattr(counted, "write_chars", 0))


def bare_clients(load: Load, endpoint: str, num_processes: int) -> dict[str, float]:
    """As many bare clients as there are workers share the load."""
    share = load.share(num_processes)
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as processes:
        list(processes.map(_nothing, range(num_processes)))  # they are up
        found = list(processes.map(_bare, [share] * num_processes, [endpoint] * num_processes))
    done = num_processes * share.num_samples
    return {
        "samples_per_second": done / max(wall for wall, _ in found),
        "cpu_microseconds_per_sample": sum(cpu for _, cpu in found) / done * 1e6,
    }


def _nothing(number: int) -> int:
    return number


def _bare(load: Load, endpoint: str) -> tuple[float, float]:
    collect_rarely()
    return timed(lambda: uvloop.run(bare(load, endpoint)))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(Wall-clock, CPU time) in seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu
