"""What the pipeline itself costs: samples a second through admit -> generate -> reward -> buffer ->
take.

    python -m benchmarks.orchestration

4,096 samples are under way at any time. The engine is a process of its own without a model: every
answer is ready half a second after its request, however many there are, which allows 8,192 samples
a second; so what is measured is the client's side, on one core. Beside it a bare aiohttp client
sends the same requests and decodes the same answers. The ratio of the two is the price of all that
the pipeline adds: groups, leases, retries, log-probs, spans, rewards, checksummed Arrow segments,
scheduling.

With --workers the groups are made in so many Ray actors (--num-rollout-workers), against bare
clients in as many processes; all but the engine share the other cores. Responses of
--long-response-tokens, and some of --routed-response-tokens with the routed experts of 48 layers,
8 a token, show what is copied."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import uvloop

from benchmarks.common import ROOT
from benchmarks.orchestration_load import (
    BARE,
    GROUP_SIZE,
    LATENCY_SECONDS,
    Load,
    Prompts,
    Running,
    bare,
    clock_of,
    take_all,
)
from benchmarks.orchestration_report import report
from buffers.encoded import encode_group
from buffers.replay_buffer import ReplayBuffer
from configs.schema import Config, RewardConfig, flat_args
from pipeline.run.group_maker import GroupMaker
from pipeline.run.outcome import collect_rarely
from pipeline.run.producer import Producer
from stages.engine.mock import MockTokenizer
from stages.engine.pool import SGLangPool
from stages.filter import build_filter
from stages.generate.client import SGLangClient
from stages.generate.generate import GenerateStage
from stages.reward import build_reward


async def pipeline(load: Load, endpoint: str) -> int:
    """Samples that went all the way.

    The parts are those of a real run, but for the engine and the learner.
    """
    rollout = load.rollout_config
    clock, asynchronous = clock_of(load)
    args = flat_args(Config(rollout=rollout))
    pool = SGLangPool(
        [Running(endpoint)], concurrency=load.concurrency, max_restarts=0, start_timeout_seconds=1
    )
    await pool.start()
    reward = build_reward(RewardConfig(rm_type="exact_match"), args)
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as folder:
        buffer = ReplayBuffer(Path(folder), asynchronous, clock)
        async with SGLangClient(pool, rollout) as client:
            generate = GenerateStage(client, MockTokenizer(), rollout, args)
            keep_all = build_filter(None, args)
            make = GroupMaker(
                generate=generate,
                reward=reward,
                keep=keep_all,
                encode=encode_group,
                group_max_retries=0,
            )
            producer = Producer(source=Prompts(load), make=make, buffer=buffer, clock=clock)
            running = asyncio.create_task(producer.run())
            taken = await take_all(buffer, clock, producer)
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
        buffer.close()
    await reward.close()
    return taken


async def generate_and_reward(load: Load, endpoint: str) -> int:
    """The first half of the pipeline: as many groups at once, none of them stored."""
    rollout = load.rollout_config
    args = flat_args(Config(rollout=rollout))
    pool = SGLangPool(
        [Running(endpoint)], concurrency=load.concurrency, max_restarts=0, start_timeout_seconds=1
    )
    await pool.start()
    reward, prompts = build_reward(RewardConfig(rm_type="exact_match"), args), Prompts(load)
    groups, done = iter(range(load.num_samples // GROUP_SIZE)), 0
    async with SGLangClient(pool, rollout) as client:
        generate = GenerateStage(client, MockTokenizer(), rollout, args)

        async def worker() -> None:
            nonlocal done
            for _ in groups:
                samples = await generate(prompts.get_samples(1)[0])
                await reward(samples)
                done += sum(s.reward == 1.0 for s in samples)

        async with asyncio.TaskGroup() as workers:
            for _ in range(load.concurrency // GROUP_SIZE):
                workers.create_task(worker())
    await reward.close()
    return done


SIDES = {BARE: bare, "generate and reward": generate_and_reward, "pipeline": pipeline}


@contextlib.contextmanager
def modelless_engine(load: Load, cores: set[int]) -> Iterator[str]:
    command = [
        sys.executable,
        "-m",
        "stages.engine.mock_server",
        "--response-tokens",
        str(load.response_tokens),
    ]
    command += ["--latency-seconds", str(LATENCY_SECONDS)]
    if load.experts_shape is not None:
        tokens = load.prompt_tokens + load.response_tokens - 1
        command += ["--experts-shape", *map(str, (tokens, *load.experts_shape))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        os.sched_setaffinity(process.pid, cores)
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().split()[1]}"
    finally:
        process.kill()
        process.wait()


def measure(
    run: Callable[[Load, str], Awaitable[int]], load: Load, endpoint: str
) -> dict[str, float]:
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    done = uvloop.run(_counted(run, load, endpoint))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "samples_per_second": done / wall,
        "cpu_microseconds_per_sample": cpu / done * 1e6,
        "wall_seconds": wall,
    }


async def _counted(run: Callable[[Load, str], Awaitable[int]], load: Load, endpoint: str) -> int:
    return await run(load, endpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=32768)
    parser.add_argument("--concurrency", type=int, default=4096)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--response-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[1, 2], help="not 0: that is above"
    )
    parser.add_argument("--long-response-tokens", type=int, default=32768, help="0: leave it out")
    parser.add_argument("--routed-response-tokens", type=int, default=2048, help="the same")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="print where one pipeline round spends its time instead",
    )
    a = parser.parse_args()
    load = Load(
        num_samples=a.samples,
        concurrency=a.concurrency,
        prompt_tokens=a.prompt_tokens,
        response_tokens=a.response_tokens,
    )
    cores = sorted(os.sched_getaffinity(0))
    collect_rarely()  # as in a run; for the bare client as well
    if a.profile:
        os.sched_setaffinity(0, {cores[0]})
        with modelless_engine(load, {cores[-1]}) as endpoint:
            _profile(load, endpoint)
        return
    rounds = short_rounds(load, a.rounds, a.workers, cores)
    few = replace(load, num_samples=256, concurrency=128)
    copied = {}
    if a.long_response_tokens:
        long = replace(few, response_tokens=a.long_response_tokens)
        copied["long samples"] = copies(long, a.workers, cores)
    if a.routed_response_tokens:
        routed = replace(few, response_tokens=a.routed_response_tokens, experts_shape=(48, 8))
        copied["samples with routed experts"] = copies(routed, a.workers, cores)
    report(load, rounds, copied)


def short_rounds(
    load: Load, num_rounds: int, workers: list[int], cores: list[int]
) -> list[dict[str, dict[str, float]]]:
    """By side. The engine has the last core; one process has the first, several have all others."""
    from benchmarks.orchestration_workers import bare_clients, pipeline_with_workers

    rounds = []
    with modelless_engine(load, {cores[-1]}) as endpoint:
        for _ in range(num_rounds):
            os.sched_setaffinity(0, {cores[0]})
            found = {name: measure(run, load, endpoint) for name, run in SIDES.items()}
            os.sched_setaffinity(0, set(cores[:-1] or cores))
            for num in workers:
                found[f"{BARE} x {num}"] = bare_clients(load, endpoint, num)
                found[f"{num} workers"] = pipeline_with_workers(load, endpoint, num)
            rounds.append(found)
    os.sched_setaffinity(0, set(cores))
    return rounds


def copies(load: Load, workers: list[int], cores: list[int]) -> dict[str, dict[str, float]]:
    """Of samples of many bytes, in one round a side."""
    from benchmarks.orchestration_workers import pipeline_with_workers

    found: dict[str, dict[str, float]] = {}
    with modelless_engine(load, {cores[-1]}) as endpoint:
        for num in (0, *workers):
            figures = pipeline_with_workers(load, endpoint, num)
            figures["driver_io_per_payload_byte"] = (
                figures["driver_io_bytes_per_sample"] / load.payload_bytes
            )
            found[f"{num} workers"] = {"payload_bytes": load.payload_bytes, **figures}
    return found


def _profile(load: Load, endpoint: str) -> None:
    import cProfile
    import pstats

    profile = cProfile.Profile()
    profile.runcall(measure, pipeline, load, endpoint)
    pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
