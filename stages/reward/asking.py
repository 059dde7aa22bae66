"""A server that scores, asked with patience: one that is down, overdue or busy is asked again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp

from pipeline.core.errors import RewardError

ATTEMPTS = 10
BACKOFF_MAX_SECONDS = 30.0  # between two attempts; they begin with a second and double
_TRY_AGAIN = (408, 425, 429)

Sleep = Callable[[float], Awaitable[None]]


class Asker:
    """POSTs JSON to one URL, at most so many requests at once.

    An attempt has `seconds` from the moment its request goes out: a queue is not the server's
    fault. One that ends in a broken connection, its deadline or 5xx (408, 425, 429) is repeated
    after a pause: one second, doubled with every attempt, or what the answer's Retry-After asks
    for, at most half a minute."""

    def __init__(
        self,
        flag: str,
        url: str,
        seconds: float,
        *,
        connections: int,
        headers: Mapping[str, str] | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`flag`: that names the server, for messages."""
        self._name, self._url, self._seconds = f"{flag} {url}", url, seconds
        self._headers, self._sleep = headers, sleep
        self._slots = asyncio.Semaphore(connections)
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, body: Mapping[str, Any]) -> Any:
        """The JSON of the answer. Raises RewardError where there is none in the end: no answer is
        no judgement."""
        for attempt in range(ATTEMPTS):
            try:
                async with self._slots:
                    return await self._attempt(body)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                said = f"{type(error).__name__}: {error}".rstrip(": ")
                if isinstance(error, aiohttp.ClientResponseError) and not _passes(error.status):
                    raise RewardError(f"{self._name} refused: {said}") from error
                if attempt + 1 == ATTEMPTS:
                    raise RewardError(
                        f"{self._name} gave no score in {ATTEMPTS} attempts of"
                        f" {self._seconds:g} s (--reward-timeout-seconds), the last: {said}"
                    ) from error
                pause = max(2.0**attempt, _asked_pause(error))
            except ValueError as error:
                raise RewardError(f"{self._name} answered no JSON: {error}") from error
            await self._sleep(min(pause, BACKOFF_MAX_SECONDS) + random.random())
        raise AssertionError("the last attempt returns or raises")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _attempt(self, body: Mapping[str, Any]) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the slots are the limit
                timeout=aiohttp.ClientTimeout(total=None),
                headers=self._headers,
            )
        async with (
            asyncio.timeout(self._seconds),
            self._session.post(self._url, json=body, raise_for_status=True) as answer,
        ):
            return await answer.json(content_type=None)


def _passes(status: int) -> bool:
    """May the server answer otherwise a little later?"""
    return status >= 500 or status in _TRY_AGAIN


def _asked_pause(error: Exception) -> float:
    """Seconds of the answer's Retry-After; 0 where it has none that is a number."""
    headers = getattr(error, "headers", None) or {}
    said = str(headers.get("Retry-After", ""))
    return float(said) if said.isdecimal() else 0.0
