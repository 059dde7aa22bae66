"""Engines that share their devices with the learner: their weights and KV leave while it trains.

SGLang needs --enable-memory-saver for that (the torch-memory-saver package, CUDA only); without it
the calls are answered and nothing is freed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import aiohttp

from pipeline.core.errors import EngineError

logger = logging.getLogger(__name__)

MOVE_SECONDS = 180.0  # deadline of one release or resume
IDLE_SECONDS = 60.0  # for an engine without requests to be idle
# What an engine gives up, by SGLang's tags (sglang/srt/constants.py); none means all.
EVERYTHING: Sequence[str] = ()
CACHE: Sequence[str] = ("kv_cache",)


class PoolGate(Protocol):
    """What this module needs of the pool (stages/engine/pool.py)."""

    @property
    def endpoints(self) -> Sequence[str]: ...
    def begin_push(self, endpoint: str) -> None: ...
    def end_push(self, endpoint: str, version: int | None) -> None: ...
    async def drained(self, endpoint: str) -> None: ...
    def is_up(self, endpoint: str) -> bool: ...
    def condemn(self, endpoint: str, reason: str) -> None: ...


class EngineMemory:
    """Releases and resumes the memory of all engines of a pool, side by side."""

    def __init__(self, pool: PoolGate, *, headers: Mapping[str, str] | None = None) -> None:
        """`headers`: of every request to an engine."""
        self._pool, self._headers = pool, headers
        self._released: dict[str, Sequence[str]] = {}  # what each has given up

    async def release(self, what: Sequence[str] = EVERYTHING) -> None:
        """Lets no new requests in, waits for those in flight (an evaluation's, say), then gives the
        memory up. An engine that refuses is ended and started again."""
        async with (
            aiohttp.ClientSession(headers=self._headers) as session,
            asyncio.TaskGroup() as group,
        ):
            for endpoint in self._pool.endpoints:
                group.create_task(self._release(session, endpoint, what))

    async def resume(self) -> None:
        """Takes back what was given up, with the weights that were there before (engines keep a
        copy on the host: --enable-weights-cpu-backup); then requests go on."""
        async with (
            aiohttp.ClientSession(headers=self._headers) as session,
            asyncio.TaskGroup() as group,
        ):
            for endpoint in self._pool.endpoints:
                group.create_task(self._resume(session, endpoint))

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """While this context lasts engines have no attention cache, by far the most of their
        memory: the learner's weights come in beside them, for a push."""
        await self.release(CACHE)
        try:
            yield
        finally:
            await self.resume()

    async def _release(
        self, session: aiohttp.ClientSession, endpoint: str, what: Sequence[str]
    ) -> None:
        """Nobody waits for an answer of it any more; a request that was aborted, or ran out of
        time, may be decoded for a few steps still, and SGLang's scheduler dies of a release then.
        """
        self._pool.begin_push(endpoint)
        await self._pool.drained(endpoint)
        if not await self._move(session, endpoint, f"flush_cache?timeout={IDLE_SECONDS:g}"):
            return
        if await self._move(session, endpoint, "release_memory_occupation", what):
            self._released[endpoint] = what

    async def _resume(self, session: aiohttp.ClientSession, endpoint: str) -> None:
        what = self._released.pop(endpoint, None)
        if what is not None:
            await self._move(session, endpoint, "resume_memory_occupation", what)
        self._pool.end_push(endpoint, None)

    async def _move(
        self,
        session: aiohttp.ClientSession,
        endpoint: str,
        path: str,
        what: Sequence[str] = EVERYTHING,
    ) -> bool:
        if not self._pool.is_up(endpoint):
            return False  # it is being started again, with all its memory
        body = {"tags": list(what)} if what else {}
        try:
            timeout = aiohttp.ClientTimeout(total=MOVE_SECONDS)
            async with session.post(f"{endpoint}/{path}", json=body, timeout=timeout) as response:
                if response.status == 200:
                    return True
                raise EngineError(
                    f"{endpoint}/{path} answered {response.status}: {(await response.text())[:300]}"
                )
        except (aiohttp.ClientError, OSError, TimeoutError, EngineError) as error:
            self._pool.condemn(endpoint, f"{path} failed ({type(error).__name__}: {error})")
            return False
