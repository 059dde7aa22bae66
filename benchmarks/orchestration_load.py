"""The load of benchmarks/orchestration.py, and its bare side."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import orjson
from yarl import URL

from buffers.replay_buffer import ReplayBuffer
from configs.schema import AsyncConfig, RolloutConfig
from pipeline.core.types import Sample
from pipeline.run.producer import Producer
from pipeline.schedule.clock import RolloutClock
from stages.generate.generate import default_sampling_params
from stages.generate.http_session import HEADERS, open_http_session

BARE = "bare aiohttp"
GROUP_SIZE = 8
LATENCY_SECONDS = 0.5  # of every answer
AHEAD = 15  # async_buffer_size: sixteen rollouts are under way, together `concurrency` samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    num_samples: int
    concurrency: int
    prompt_tokens: int
    response_tokens: int
    experts_shape: tuple[int, int] | None = None  # (layers, experts a token): with every answer

    @property
    def rollout_batch_size(self) -> int:
        return self.concurrency // GROUP_SIZE // (AHEAD + 1)

    @property
    def num_rollout(self) -> int:
        return self.num_samples // GROUP_SIZE // self.rollout_batch_size

    def share(self, num: int) -> Load:
        """One of so many equal parts."""
        return replace(
            self, num_samples=self.num_samples // num, concurrency=self.concurrency // num
        )

    @property
    def payload_bytes(self) -> int:
        """Of a sample: token ids, of its response the loss mask and the log-probs, and a byte for
        every routed expert."""
        tokens = self.prompt_tokens + self.response_tokens
        layers, top_k = self.experts_shape or (0, 0)
        return 8 * tokens + 5 * self.response_tokens + layers * top_k * (tokens - 1)

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
    on_death: Callable[[str], None] | None = None

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    async def start(self, weight_version: int, timeout_seconds: float) -> None: ...

    async def healthy(self, *, deep: bool) -> bool:
        return True

    async def stop(self) -> None: ...
    def kill(self) -> None: ...

    def log_tail(self) -> str:
        return ""

    async def on_nodes(self, work: Callable[..., Any], *args: Any) -> list[Any]:
        return [await asyncio.to_thread(work, *args)]


def clock_of(load: Load) -> tuple[RolloutClock, AsyncConfig]:
    config = AsyncConfig(async_buffer_size=AHEAD, update_weights_interval=load.num_rollout + AHEAD)
    clock = RolloutClock(
        rollout_batch_size=load.rollout_batch_size,
        async_buffer_size=AHEAD,
        update_weights_interval=config.update_weights_interval,
        num_rollout=load.num_rollout,
    )
    return clock, config


async def take_all(buffer: ReplayBuffer, clock: RolloutClock, producer: Producer) -> int:
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
