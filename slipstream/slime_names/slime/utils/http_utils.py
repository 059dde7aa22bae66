"""Requests to the router, or to any server of yours."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp

from pipeline.core.slime_names import refuse
from stages.generate.http_session import open_http_session

logger = logging.getLogger(__name__)
RETRY_SECONDS = 1.0
__getattr__ = refuse("slime.utils.http_utils")


async def post(
    url: str,
    payload: Mapping[str, Any] | None,
    max_retries: int = 60,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """The answer's JSON, else its text. A server that cannot be reached, or that fails (5xx, 429),
    is asked up to `max_retries` times; a request that it refuses (4xx) is raised at once."""
    for attempt in range(1, max_retries + 1):
        try:
            return await _ask("POST", url, json=payload or {}, headers=headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if attempt >= max_retries or not _may_pass(error):
                raise
            logger.info("%s (%d of %d): %s", url, attempt, max_retries, error)
        await asyncio.sleep(RETRY_SECONDS)
    raise ValueError(f"max_retries {max_retries}: at least 1")


async def get(url: str) -> Any:
    """The answer's JSON, else its text."""
    return await _ask("GET", url)


async def _ask(method: str, url: str, **given: Any) -> Any:
    async with _session() as session, session.request(method, url, **given) as answer:
        text = await answer.text()
        if answer.status >= 400:
            raise aiohttp.ClientResponseError(
                answer.request_info,
                answer.history,
                status=answer.status,
                message=f"{answer.reason}: {text[:500]}",
            )
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _may_pass(error: Exception) -> bool:
    status = getattr(error, "status", None)
    return status is None or status >= 500 or status == 429


class _Shared:
    """One session for all requests of a loop; it is open while there are any."""

    def __init__(self) -> None:
        self.session, self.users = open_http_session(), 0


_SHARED: WeakKeyDictionary[asyncio.AbstractEventLoop, _Shared] = WeakKeyDictionary()


@asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    loop = asyncio.get_running_loop()
    shared = _SHARED.get(loop) or _SHARED.setdefault(loop, _Shared())
    shared.users += 1
    try:
        yield shared.session
    finally:
        shared.users -= 1
        if not shared.users:
            _SHARED.pop(loop, None)
            await shared.session.close()
