"""Questions and orders to a server that somebody else runs."""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Mapping
from typing import Any

import aiohttp

from pipeline.core.errors import EngineError

logger = logging.getLogger(__name__)

CALL_SECONDS = 30.0
LET_GO_SECONDS = 2.0  # of one order of `let_go`
# in this order: requests that were under way are marked while it is paused and end when it goes on;
# those that only waited are dropped by the second one
LET_GO: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("abort_request", {"rid": "", "abort_all": True}),
    ("continue_generation", {}),
    ("abort_request", {"rid": "", "abort_all": True}),
)


async def call(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    seconds: float,
    body: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON object of its answer; empty where the answer is none. Raises EngineError."""
    try:
        async with session.request(
            method, url, json=body, timeout=aiohttp.ClientTimeout(total=seconds)
        ) as response:
            said = await response.text()
            if response.status != 200:
                raise EngineError(f"{url} answered {response.status}: {said[:300]}")
    except TimeoutError:
        raise EngineError(f"{url} gave no answer in {seconds:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise EngineError(f"{url} failed: {type(error).__name__}: {error}") from error
    try:
        answer = json.loads(said)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def let_go(endpoint: str, headers: Mapping[str, str]) -> None:
    """Drops every request that it works on and lets it go on; blocks for a few seconds at most. One
    that does not answer has nothing to be told."""
    for path, body in LET_GO:
        request = urllib.request.Request(
            f"{endpoint}/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=LET_GO_SECONDS):
                pass
        except OSError as error:
            logger.debug("%s/%s: %s", endpoint, path, error)
            return
