"""`--rm-type remote_rm`: a server scores, as slime asks one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from pipeline.core.errors import RewardError
from pipeline.core.types import Sample

ATTEMPTS = 10
BACKOFF_MAX_SECONDS = 30.0  # between two attempts; they begin with a second and double
CONNECTIONS = 64  # at once: a reward server is one program, not a pool
_TRY_AGAIN = (408, 425, 429)

Sleep = Callable[[float], Awaitable[None]]


class RemoteReward:
    """POSTs {"prompt", "response", "label"} to --rm-url; the JSON of the answer is the reward: a
    number, or an object with a `score`.

    An attempt has --reward-timeout-seconds. A server that is down, overdue or answers 5xx (408,
    425, 429) is asked again, with back-off; then the sample has failed: no answer is no
    judgement."""

    def __init__(
        self, url: str | None, timeout_seconds: float, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._url, self._seconds, self._sleep = url, timeout_seconds, sleep
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, sample: Sample) -> Any:
        """The reward of the sample. Raises RewardError."""
        if self._url is None:
            raise RewardError("rm_type remote_rm needs --rm-url, the server that scores")
        body = {"prompt": sample.prompt, "response": sample.response, "label": sample.label}
        for attempt in range(ATTEMPTS):
            try:
                return await self._ask(body)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                said = f"{type(error).__name__}: {error}".rstrip(": ")
                if isinstance(error, aiohttp.ClientResponseError) and not _passes(error.status):
                    raise RewardError(f"--rm-url {self._url} refused: {said}") from error
                if attempt + 1 == ATTEMPTS:
                    raise RewardError(
                        f"--rm-url {self._url} gave no score in {ATTEMPTS} attempts of"
                        f" {self._seconds:g} s (--reward-timeout-seconds), the last: {said}"
                    ) from error
            except ValueError as error:
                raise RewardError(f"--rm-url {self._url} answered no JSON: {error}") from error
            await self._sleep(min(2.0**attempt, BACKOFF_MAX_SECONDS) + random.random())
        raise AssertionError("the last attempt returns or raises")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(self, body: dict[str, Any]) -> Any:
        assert self._url is not None
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        async with (
            asyncio.timeout(self._seconds),
            self._session.post(self._url, json=body, raise_for_status=True) as answer,
        ):
            return await answer.json(content_type=None)


def _passes(status: int) -> bool:
    """May the server answer otherwise a little later?"""
    return status >= 500 or status in _TRY_AGAIN
