"""HTTP client of SGLang engines: token ids in, token ids out, with retries, deadlines and aborts.

KV of different policy versions is kept apart by `extra_key`, the radix cache's namespace: a request
is filed under the version its engine had confirmed when the request was sent. One race is left: a
push may land between the two, and the request then runs on new weights over cached KV of the old
ones. Its answer betrays it (first token newer than the key, `cached_tokens` > 0), so it is asked
again under a key of its own, under which nothing can be cached."""

from __future__ import annotations

import asyncio
import itertools
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson
from yarl import URL

from configs.schema import RolloutConfig
from pipeline.core.errors import EngineError, ForgottenWeightsError, RefusedRequestError
from pipeline.core.protocols import EnginePool
from pipeline.core.types import Completion
from stages.generate.answers import ExpertsWanted, parse_completion
from stages.generate.http_session import HEADERS, open_http_session
from stages.generate.through_router import ThroughRouter

BACKOFF_SECONDS = 0.25  # before the first retry; doubles with every further one
BACKOFF_MAX_SECONDS = 15.0
ABORT_SECONDS = 5.0  # deadline of an abort

Sleep = Callable[[float], Awaitable[None]]


class _TransientError(Exception):
    """One attempt failed in a way that another attempt may cure."""


class _StaleKVError(Exception):
    """The answer was computed on cached KV of weights older than its first token's."""


@dataclass(slots=True)
class ClientStatistics:
    """Counters since the start. `requests` counts attempts that were answered."""

    requests: int = 0
    retries: int = 0
    transport_failures: int = 0
    stale_kv_retries: int = 0
    aborts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


class SGLangClient:
    """`EngineClient` over every engine of a pool, on one shared aiohttp session. Use as an async
    context manager.

    `boundary_is_old`: set for engines that run with overlap scheduling. There the sampler is one
    step ahead of the version label, so the first token labelled with a new version was still
    sampled by the old weights; spans are moved by one token to say so."""

    def __init__(
        self,
        pool: EnginePool,
        rollout: RolloutConfig,
        *,
        boundary_is_old: bool = False,
        timeout_seconds: float | None = None,
        experts_shape: tuple[int, int] | None = None,
        connection_limit: int = 0,
        headers: Mapping[str, str] | None = None,
        router: ThroughRouter | None = None,
        sleep: Sleep = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        """`timeout_seconds`: the deadline of a request, where others are longer than those of
        `rollout`. `experts_shape`: (layers, experts a token) of the model, to have the routed
        experts with every answer (engines need --enable-return-routed-experts). `connection_limit`
        0: as many as there are requests (leases of the pool bound them). `headers`: of every
        request.
        `router`: what the pool leases is SGLang's, and chooses the engine."""
        self._pool = pool
        self._max_retries = rollout.generate_max_retries
        self._timeout_seconds = timeout_seconds or rollout.request_seconds
        self._boundary_is_old = boundary_is_old
        self._experts_shape = experts_shape
        self._connection_limit, self._headers = connection_limit, headers
        self._router, self._sleep = router, sleep
        self._rng = rng or random.Random()
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}
        self._rid_prefix = uuid.uuid4().hex
        self._rids = itertools.count()
        self._aborts: set[asyncio.Task[None]] = set()
        self.statistics = ClientStatistics()

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Finishes the aborts under way (each has a deadline) and closes every connection."""
        if self._aborts:
            await asyncio.wait(set(self._aborts))
        if self._session is not None:
            await self._session.close()
            self._session = None

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

        Raises EngineError when an engine refuses the request (4xx) or the retries are used up.
        """
        failures, fresh_key = 0, False
        if self._router is not None:
            self._router.check(sampling_params)
        while True:
            try:
                return await self._attempt(
                    input_ids, sampling_params, session_id, fresh_key, known_experts, images
                )
            except _StaleKVError as error:
                if fresh_key:
                    raise EngineError(
                        f"{error}, although the request had a cache key of its own: does the engine"
                        " know `extra_key`?"
                    ) from None
                self.statistics.stale_kv_retries += 1
                fresh_key = True
            except _TransientError as error:
                failures += 1
                if failures > self._max_retries:
                    hint = (
                        "see the engine's log; --generate-max-retries and"
                        " --generate-timeout-seconds set the limits"
                    )
                    raise EngineError(
                        f"a request failed {failures} times, the last time with: {error} ({hint})"
                    ) from error
                self.statistics.retries += 1
                await self._sleep(self._backoff(failures))

    def _backoff(self, failures: int) -> float:
        """Seconds to wait: they double with every failure, half fixed and half at random, so that a
        thousand failed requests do not come back at once."""
        ceiling = min(BACKOFF_SECONDS * 2 ** (failures - 1), BACKOFF_MAX_SECONDS)
        return ceiling * (0.5 + 0.5 * self._rng.random())

    async def _attempt(
        self,
        input_ids: Sequence[int],
        params: Mapping[str, Any],
        session_id: str | None,
        fresh_key: bool,
        known_experts: int,
        images: Sequence[str],
    ) -> Completion:
        rid = f"{self._rid_prefix}-{next(self._rids)}"
        endpoint = ""
        try:
            async with self._pool.lease(session_id) as endpoint:
                version = self._pool.version_of(endpoint)
                request = {
                    "rid": rid,
                    "input_ids": input_ids,
                    "sampling_params": params,
                    "return_logprob": True,
                    "extra_key": f"{version}/{rid}" if fresh_key else str(version),
                }
                if self._experts_shape is not None:
                    request |= {
                        "return_routed_experts": True,
                        "routed_experts_start_len": known_experts,
                    }
                if images:
                    request["image_data"] = list(images)
                body = await self._post(endpoint, rid, orjson.dumps(request), session_id)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if not endpoint:  # not a request's failure, but the pool's
                raise
            self.statistics.transport_failures += 1
            await self._pool.report_failure(endpoint, error)
            what = (
                f"no answer in {self._timeout_seconds:g} s"
                if isinstance(error, TimeoutError)
                else f"{type(error).__name__}: {error}"
            )
            raise _TransientError(f"{endpoint}: {what}") from error
        wanted = (
            None
            if self._experts_shape is None
            else ExpertsWanted(known_experts, len(input_ids), *self._experts_shape)
        )
        try:
            completion = parse_completion(
                body,
                endpoint,
                confirmed=version,
                boundary_is_old=self._boundary_is_old,
                experts=wanted,
            )
        except ForgottenWeightsError as error:
            await self._pool.report_failure(endpoint, error)
            raise _TransientError(str(error)) from error
        self._count(input_ids, completion)
        if completion.finish_reason == "abort":
            raise _TransientError(f"{endpoint} aborted request {rid}")
        first = completion.spans[0].version if completion.spans else version
        if first > version and completion.cached_tokens > 0:
            raise _StaleKVError(
                f"{endpoint} sampled with version {first} over {completion.cached_tokens} cached"
                f" tokens of version {version}"
            )
        return completion

    async def _post(self, endpoint: str, rid: str, data: bytes, session_id: str | None) -> bytes:
        router = self._router
        headers = HEADERS if router is None else HEADERS | router.headers(session_id)
        url = self._urls.get(endpoint) or self._urls.setdefault(
            endpoint, URL(endpoint) / "generate"
        )
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
                self._open().post(url, data=data, headers=headers) as response,
            ):
                body = await response.read()
                if response.status == 200:
                    return body
        except (asyncio.CancelledError, TimeoutError):
            # nobody waits for the answer any more: the engine should not work on it
            task = asyncio.create_task(self._abort(endpoint, rid))
            self._aborts.add(task)
            task.add_done_callback(self._aborts.discard)
            raise
        said = f"{endpoint} answered {response.status}: {body[:500].decode(errors='replace')}"
        if response.status >= 500 and self._router is not None:  # an engine's death comes as 502
            await self._pool.report_failure(endpoint, EngineError(said))
        if response.status >= 500 or response.status == 429:
            raise _TransientError(said)
        raise RefusedRequestError(said)

    async def _abort(self, endpoint: str, rid: str) -> None:
        """Tells the engine to drop the request, as best it can: an engine that is gone has nothing
        left to abort, and live requests report its failure."""
        self.statistics.aborts += 1
        engines = self._router.engines if self._router is not None else (endpoint,)
        async with asyncio.TaskGroup() as group:
            for engine in engines:
                group.create_task(self._abort_at(engine, rid))

    async def _abort_at(self, engine: str, rid: str) -> None:
        try:
            async with asyncio.timeout(ABORT_SECONDS):
                data = orjson.dumps({"rid": rid})
                async with self._open().post(
                    URL(engine) / "abort_request", data=data, headers=HEADERS
                ):
                    pass
        except (aiohttp.ClientError, OSError, TimeoutError):
            return

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = open_http_session(self._connection_limit, self._headers)
        return self._session

    def _count(self, input_ids: Sequence[int], completion: Completion) -> None:
        self.statistics.requests += 1
        self.statistics.input_tokens += len(input_ids)
        self.statistics.output_tokens += len(completion.token_ids)
        self.statistics.cached_tokens += completion.cached_tokens
