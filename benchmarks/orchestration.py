"""What the pipeline itself costs: samples a second through admit -> generate -> reward -> buffer ->
take.

    python -m benchmarks.orchestration

4,096 samples are under way at any time. The engine is a process of its own without a model: every
answer is ready half a second after its request, however many there are, which allows 8,192 samples
a second; so what is measured is the client's side, on one core. Beside it a bare aiohttp client
sends the same requests and decodes the same answers. The ratio of the two is the price of all that
the pipeline adds: groups, leases, retries, log-probs, spans, rewards, checksummed Arrow segments,
scheduling."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import uvloop
from yarl import URL

from benchmarks.common import ROOT, keep, table
from buffers.encoded import encode_group
from buffers.replay_buffer import ReplayBuffer
from configs.schema import AsyncConfig, Config, RewardConfig, RolloutConfig, flat_args
from pipeline.core.types import Sample
from pipeline.run.group_maker import GroupMaker
from pipeline.run.outcome import collect_rarely
from pipeline.run.producer import Producer
from pipeline.schedule.clock import RolloutClock
from stages.engine.mock import MockTokenizer
from stages.engine.pool import SGLangPool
from stages.filter import build_filter
from stages.generate.client import HEADERS, SGLangClient, open_http_session
from stages.generate.generate import GenerateStage, default_sampling_params
from stages.reward import build_reward

GROUP_SIZE = 8
AHEAD = 15  # async_buffer_size: sixteen rollouts are under way, together `concurrency` samples
LATENCY_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    num_samples: int
    concurrency: int
    prompt_tokens: int
    response_tokens: int

    @property
    def rollout_batch_size(self) -> int:
        return self.concurrency // GROUP_SIZE // (AHEAD + 1)

    @property
    def num_rollout(self) -> int:
        return self.num_samples // GROUP_SIZE // self.rollout_batch_size

    @property
    def prompt(self) -> list[int]:
        return [97 + i % 26 for i in range(self.prompt_tokens)]

    @property
    def rollout_config(self) -> RolloutConfig:
        return RolloutConfig(
            rollout_batch_size=self.rollout_batch_size,
            n_samples_per_prompt=GROUP_SIZE,
            rollout_max_response_len=self.response_tokens,
        )


class Prompts:
    """The source: the same prompt for ever."""

    def __init__(self, load: Load) -> None:
        self._tokens = load.prompt
        self._text = bytes(self._tokens).decode()

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        return [
            [Sample(prompt=self._text, tokens=self._tokens, label="42") for _ in range(GROUP_SIZE)]
            for _ in range(num_samples)
        ]

    def add_samples(self, groups: list[list[Sample]]) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError


class Running:
    """An engine process that somebody else has started."""

    name = "engine without a model"
    alive = True

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    async def start(self, weight_version: int, timeout_seconds: float) -> None: ...

    async def healthy(self, *, deep: bool) -> bool:
        return True

    async def stop(self) -> None: ...
    def kill(self) -> None: ...

    def log_tail(self) -> str:
        return ""


async def pipeline(load: Load, endpoint: str) -> int:
    """Samples that went all the way.

    The parts are those of a real run, but for the engine and the learner.
    """
    rollout = load.rollout_config
    asynchronous = AsyncConfig(
        async_buffer_size=AHEAD, update_weights_interval=load.num_rollout + AHEAD
    )
    clock = RolloutClock(
        rollout_batch_size=rollout.rollout_batch_size,
        async_buffer_size=AHEAD,
        update_weights_interval=asynchronous.update_weights_interval,
        num_rollout=load.num_rollout,
    )
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
            taken = await _take_all(buffer, clock, producer)
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


async def _take_all(buffer: ReplayBuffer, clock: RolloutClock, producer: Producer) -> int:
    taken = 0
    while not clock.finished:
        rollout_id = clock.num_trained
        groups = await buffer.take(rollout_id)
        assert all(s.reward == 1.0 for g in groups for s in g.samples), (
            "every answer is right: a reward that is not 1 is a defect"
        )
        taken += sum(len(g.samples) for g in groups)
        clock.trained(rollout_id)
        producer.forget()
    return taken


async def bare(load: Load, endpoint: str) -> int:
    """The same requests and answers through aiohttp alone, with the same session settings: nothing
    is saved by the pipeline there."""
    params = default_sampling_params(load.rollout_config)
    numbers = itertools.count()
    prompt, url, done = load.prompt, URL(endpoint) / "generate", 0

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal done
        while (number := next(numbers)) < load.num_samples:
            request = {
                "rid": str(number),
                "input_ids": prompt,
                "sampling_params": params,
                "return_logprob": True,
                "extra_key": "0",
            }
            async with session.post(url, data=orjson.dumps(request), headers=HEADERS) as response:
                answer = orjson.loads(await response.read())
            assert len(answer["meta_info"]["output_token_logprobs"]) == load.response_tokens
            done += 1

    async with open_http_session() as session, asyncio.TaskGroup() as group:
        for _ in range(load.concurrency):
            group.create_task(worker(session))
    return done


SIDES = {"bare aiohttp": bare, "generate and reward": generate_and_reward, "pipeline": pipeline}


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
    os.sched_setaffinity(0, {cores[0]})
    collect_rarely()  # as in a run; for the bare client as well
    with modelless_engine(load, {cores[-1]}) as endpoint:
        if a.profile:
            _profile(load, endpoint)
            return
        rounds = [
            {name: measure(run, load, endpoint) for name, run in SIDES.items()}
            for _ in range(a.rounds)
        ]
    os.sched_setaffinity(0, set(cores))
    report(load, rounds)


def report(load: Load, rounds: list[dict[str, dict[str, float]]]) -> None:
    """Medians over rounds. Ratios are of two sides of one round, which ran one after the other on
    the same machine; that of CPU time is the one to trust where other programs run beside."""
    middle = {
        side: {name: statistics.median(r[side][name] for r in rounds) for name in rounds[0][side]}
        for side in SIDES
    }
    for side in SIDES:
        of_bare = [(r["bare aiohttp"], r[side]) for r in rounds]
        middle[side]["throughput_ratio"] = statistics.median(
            s["samples_per_second"] / b["samples_per_second"] for b, s in of_bare
        )
        middle[side]["cpu_ratio"] = statistics.median(
            b["cpu_microseconds_per_sample"] / s["cpu_microseconds_per_sample"] for b, s in of_bare
        )
    names = ("samples_per_second", "cpu_microseconds_per_sample", "throughput_ratio", "cpu_ratio")
    table(
        ["", "samples/s", "CPU us/sample", "samples/s ratio", "CPU ratio"],
        [[side, *(middle[side][n] for n in names)] for side in SIDES],
    )
    print(f"{load.concurrency} samples under way; aim: a ratio of 0.7 for the pipeline")
    described = {
        **{name: getattr(load, name) for name in load.__slots__},
        "latency_seconds": LATENCY_SECONDS,
    }
    keep("orchestration", {"load": described, "rounds": len(rounds), **middle})


def _profile(load: Load, endpoint: str) -> None:
    import cProfile
    import pstats

    profile = cProfile.Profile()
    profile.runcall(measure, pipeline, load, endpoint)
    pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
