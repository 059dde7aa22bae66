"""Simulated engines for `--mock` and for tests: no model, no HTTP, no torch; the pool around them
is the real one.

What is simulated: lognormal response lengths, a constant time per token, pauses and version changes
in the middle of a response, failing requests, and a skill that grows with the policy version, so
that rewards rise as in training."""

from __future__ import annotations

import asyncio
import math
import random
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from configs.schema import MockConfig
from pipeline.core.errors import EngineError
from pipeline.core.labels import accepted_answers
from pipeline.core.protocols import Generate
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import Completion, Sample, VersionSpan
from stages.engine.mock_tokenizer import MockTokenizer as MockTokenizer
from stages.engine.pool import SGLangPool

Sleep = Callable[[float], Awaitable[None]]

SKILL_START = 0.15  # share of right answers at version 0
SKILL_VERSIONS = 8.0  # policy versions in which the share of wrong answers falls by a factor e
WRONG_ANSWER = "?"


def skill(version: int) -> float:
    """The probability that a response of policy `version` is its prompt's label."""
    return 1.0 - (1.0 - SKILL_START) * math.exp(-version / SKILL_VERSIONS)


class MockEngine:
    """One simulated server, an `EngineProcess`.

    Its time stands still while it is paused, for requests in flight as well."""

    def __init__(self, index: int, time: TimeSource, sleep: Sleep) -> None:
        self.endpoint = f"mock://{index}"
        self.alive = False
        self._time, self._sleep = time, sleep
        self._running = asyncio.Event()
        self._active = self._since = 0.0  # seconds served up to `_since`, a reading of the time
        self._changes: list[float] = [0.0]  # when, in served seconds, the versions below came in
        self._versions: list[int] = [0]

    @property
    def name(self) -> str:
        return f"mock engine {self.endpoint}"

    async def start(self, weight_version: int, timeout_seconds: float) -> None:
        self.alive = True
        self.resume(weight_version)

    async def healthy(self, *, deep: bool) -> bool:
        return self.alive

    async def stop(self) -> None:
        self.kill()

    def kill(self) -> None:
        self.alive = False
        self.pause()

    def log_tail(self) -> str:
        return "(a mock engine has no log)"

    def pause(self) -> None:
        self._active = self.active_seconds()
        self._running.clear()

    def resume(self, version: int | None) -> None:
        """Go on; with a version, tokens from here on are sampled by it."""
        self._since = self._time.now()
        self._running.set()
        if version is not None and version != self._versions[-1]:
            self._changes.append(self._active)
            self._versions.append(version)

    def active_seconds(self) -> float:
        """How many seconds this engine has served; pauses are left out."""
        return self._active + (self._time.now() - self._since if self._running.is_set() else 0.0)

    async def sample(self, num_tokens: int, seconds_per_token: float) -> tuple[VersionSpan, ...]:
        """Takes the time of `num_tokens` and says which version sampled each of them."""
        start = self.active_seconds()
        end = start + num_tokens * seconds_per_token
        while (left := end - self.active_seconds()) > 1e-9 or not self._running.is_set():
            await self._running.wait()
            await self._sleep(max(left, 0.0))
        return self._spans(num_tokens, start, seconds_per_token)

    def _spans(
        self, num_tokens: int, start: float, seconds_per_token: float
    ) -> tuple[VersionSpan, ...]:
        """Token i is sampled at start + (i + 1) * seconds_per_token."""
        spans, at = [], 0
        for place in range(bisect_right(self._changes, start) - 1, len(self._changes)):
            end = num_tokens
            if place + 1 < len(self._changes) and seconds_per_token > 0:
                end = min(int((self._changes[place + 1] - start) / seconds_per_token), num_tokens)
            if end > at:
                spans.append(VersionSpan(self._versions[place], at, end))
                at = end
        return tuple(spans)


class MockPool(SGLangPool):
    """The real pool over mock engines. A push pauses the engine that it is at."""

    def __init__(
        self,
        *,
        num_engines: int = 1,
        concurrency: int = 512,
        initial_version: int = 0,
        time: TimeSource | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        time = time or MonotonicTime()
        self.engines = {
            engine.endpoint: engine
            for engine in (MockEngine(i, time, sleep) for i in range(num_engines))
        }
        super().__init__(
            tuple(self.engines.values()),
            concurrency=concurrency,
            max_restarts=0,
            start_timeout_seconds=1.0,
            initial_version=initial_version,
            time=time,
            sleep=sleep,
        )

    def begin_push(self, endpoint: str) -> None:
        super().begin_push(endpoint)
        self.engines[endpoint].pause()

    def end_push(self, endpoint: str, version: int | None) -> None:
        self.engines[endpoint].resume(version)
        super().end_push(endpoint, version)


class MockEngineClient:
    """`EngineClient` over a MockPool.

    Answers what `learn_answers` has taught it, as often as the version's skill says.
    """

    def __init__(
        self, pool: MockPool, config: MockConfig, tokenizer: MockTokenizer, *, seed: int = 0
    ) -> None:
        self._pool, self._config, self._tokenizer = pool, config, tokenizer
        self._rng = random.Random(seed)
        self._answers: dict[bytes, str] = {}
        # so that the mean is the mean
        self._mu = math.log(config.mock_length_mean) - config.mock_length_sigma**2 / 2

    def learn_answers(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            ids = sample.tokens or self._encode(sample.prompt)
            self._answers[_key(ids)] = _answer_of(sample.label)

    async def generate(
        self,
        input_ids: Sequence[int],
        sampling_params: Mapping[str, Any],
        *,
        session_id: str | None = None,
        known_experts: int = 0,
        images: Sequence[str] = (),
    ) -> Completion:
        """See `EngineClient`.

        A share of `mock_failure_rate` of all requests fails, after the time it would have taken.
        """
        seed = sampling_params.get("sampling_seed")
        rng = self._rng if seed is None else random.Random(seed)
        wanted = max(1, round(rng.lognormvariate(self._mu, self._config.mock_length_sigma)))
        limit = int(sampling_params["max_new_tokens"])
        fails = rng.random() < self._config.mock_failure_rate
        async with self._pool.lease(session_id) as endpoint:
            engine = self._pool.engines[endpoint]
            answer = self._answer(input_ids, self._pool.version_of(endpoint), rng)
            wanted = max(wanted, len(answer))
            spans = await engine.sample(min(wanted, limit), self._config.mock_seconds_per_token)
        if fails:
            raise EngineError(
                f"{endpoint}: simulated failure (--mock-failure-rate"
                f" {self._config.mock_failure_rate})"
            )
        ids = ([MockTokenizer.THINK] * (wanted - len(answer)) + answer)[:limit]
        return Completion(
            token_ids=tuple(ids),
            log_probs=tuple([-0.5 * rng.random() for _ in ids]),
            spans=spans,
            finish_reason="stop" if wanted <= limit else "length",
            text=self._tokenizer.decode(ids),
        )

    def _answer(self, input_ids: Sequence[int], version: int, rng: random.Random) -> list[int]:
        label = self._answers.get(_key(input_ids), WRONG_ANSWER)
        return self._tokenizer.encode(label if rng.random() < skill(version) else WRONG_ANSWER)

    def _encode(self, prompt: str | list[dict[str, Any]]) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt)
        return list(
            self._tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_dict=False
            )
        )


class LabelledGenerate:
    """A generate stage whose mock engines are told the labels first. Implements `Generate`."""

    def __init__(self, generate: Generate, client: MockEngineClient) -> None:
        self._generate, self._client = generate, client

    async def __call__(
        self,
        samples: Sequence[Sample],
        *,
        evaluation: bool = False,
        sampling: Mapping[str, Any] | None = None,
    ) -> list[Sample]:
        self._client.learn_answers(samples)
        return await self._generate(samples, evaluation=evaluation, sampling=sampling)


def _answer_of(label: Any) -> str:
    """The first that is right; a label that only a user's own reward understands as it is."""
    try:
        return accepted_answers(label)[0]
    except ValueError:
        return "" if label is None else str(label)


def _key(ids: Sequence[int]) -> bytes:
    return b"".join(i.to_bytes(4, "little") for i in ids)
