"""Simulated engines for `--mock` and for tests: no model, no HTTP, no torch; the pool around them
is the real one.

What is simulated: lognormal response lengths, continuous batching (`mock_decode`), pauses and
version changes in the middle of a response, failing requests, and a skill that grows with the
policy version, so that rewards rise as in training."""

from __future__ import annotations

import asyncio
import math
import random
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from configs.schema import MockConfig
from pipeline.core.errors import EngineError
from pipeline.core.labels import accepted_answers
from pipeline.core.protocols import EnginePool, Generate
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import Completion, Sample, VersionSpan
from stages.engine.elastic import ElasticPool
from stages.engine.mock_decode import ContinuousBatch
from stages.engine.mock_tokenizer import MockTokenizer as MockTokenizer

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

    def __init__(self, index: int, config: MockConfig, time: TimeSource, sleep: Sleep) -> None:
        self.endpoint = f"mock://{index}"
        self.alive = False
        self.on_death: Callable[[str], None] | None = None
        self._time, self._sleep = time, sleep
        self._batch = ContinuousBatch[asyncio.Future[float]](
            num_slots=config.mock_max_running_requests,
            step_seconds=config.mock_seconds_per_token,
            step_seconds_per_request=config.mock_seconds_per_running_request,
        )
        self._requests: set[asyncio.Future[float]] = set()
        self._works_since: float | None = None  # a reading of the time; None: it is paused
        self._timer: asyncio.Task[None] | None = None
        self._rings_at = 0.0
        self._changes: list[float] = [0.0]  # at which of its steps the versions below came in
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
        """What is under way fails, as with a server that is gone."""
        self.alive = False
        self.pause()
        for request in self._requests:
            if not request.done():
                request.set_exception(EngineError(f"{self.name} was ended"))

    async def on_nodes(self, work: Callable[..., Any], *args: Any) -> list[Any]:
        return [await asyncio.to_thread(work, *args)]

    def log_tail(self) -> str:
        return "(a mock engine has no log)"

    def pause(self) -> None:
        self._work()
        self._works_since = None
        self._forget_timer()

    def resume(self, version: int | None) -> None:
        """Go on; with a version, tokens from here on are sampled by it."""
        self._work()
        self._works_since = self._time.now()
        if version is not None and version != self._versions[-1]:
            self._changes.append(self._batch.steps)
            self._versions.append(version)
        self._set_timer()

    async def sample(self, num_tokens: int) -> tuple[VersionSpan, ...]:
        """Takes the time of `num_tokens`, that in the queue too, and says which version sampled
        each of them."""
        ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._work()
        self._batch.add(ended, num_tokens)
        self._requests.add(ended)
        self._set_timer()
        try:
            return self._spans(num_tokens, await ended)
        except (asyncio.CancelledError, EngineError):
            self._work()
            self._batch.remove(ended)
            self._set_timer()
            raise
        finally:
            self._requests.discard(ended)

    def _work(self) -> None:
        """Brings the batch up to now."""
        if self._works_since is None:
            return
        now = self._time.now()
        for request, start in self._batch.work(now - self._works_since):
            if not request.done():
                request.set_result(start)
        self._works_since = now

    def _set_timer(self) -> None:
        """One that rings too early sets itself again."""
        seconds = self._batch.seconds_to_next()
        if self._works_since is None or seconds is None:
            return
        at = self._works_since + seconds
        if self._timer is not None and self._rings_at <= at:
            return
        self._forget_timer()
        self._rings_at, self._timer = at, asyncio.create_task(self._ring(seconds))

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _ring(self, seconds: float) -> None:
        await self._sleep(seconds)
        self._timer = None
        self._work()
        self._set_timer()

    def _spans(self, num_tokens: int, start: float) -> tuple[VersionSpan, ...]:
        """Token i is sampled at step start + i + 1."""
        spans, at = [], 0
        for place in range(bisect_right(self._changes, start) - 1, len(self._changes)):
            end = num_tokens
            if place + 1 < len(self._changes):
                end = min(int(self._changes[place + 1] - start), num_tokens)
            if end > at:
                spans.append(VersionSpan(self._versions[place], at, end))
                at = end
        return tuple(spans)


class MockPool(ElasticPool):
    """The real pool over mock engines."""

    def __init__(
        self,
        *,
        config: MockConfig,
        num_engines: int = 1,
        concurrency: int = 512,
        initial_version: int = 0,
        time: TimeSource | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._config, time = config, time or MonotonicTime()
        self.engines = {
            engine.endpoint: engine
            for engine in (MockEngine(i, config, time, sleep) for i in range(num_engines))
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

    def make_engine(self, index: int) -> MockEngine:
        """One more, to join."""
        engine = MockEngine(index, self._config, self._time, self._sleep)
        self.engines[engine.endpoint] = engine
        return engine

    def pause(self, endpoint: str) -> None:
        """The engine's time stands still until `end_push`."""
        self.engines[endpoint].pause()

    def end_push(self, endpoint: str, version: int | None) -> None:
        self.engines[endpoint].resume(version)
        super().end_push(endpoint, version)


class MockEngines(EnginePool, Protocol):
    """A pool whose engines are simulated in this process."""

    engines: dict[str, MockEngine]


class MockEngineClient:
    """`EngineClient` over simulated engines.

    Answers what `learn_answers` has taught it, as often as the version's skill says.
    """

    def __init__(
        self, pool: MockEngines, config: MockConfig, tokenizer: MockTokenizer, *, seed: int = 0
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
            spans = await engine.sample(min(wanted, limit))
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
