"""The HTTP session on which thousands of requests wait for a few servers."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp

from pipeline.core.sockets import watched_socket

CONNECT_SECONDS = 10.0
KEEPALIVE_SECONDS = 4.0  # uvicorn drops idle connections after 5 s: let go of them first
HEADERS = {"Content-Type": "application/json"}


def open_http_session(
    connection_limit: int = 0, headers: Mapping[str, str] | None = None
) -> aiohttp.ClientSession:
    """A session for thousands of requests at once to a few servers; the caller sets the deadlines.
    `connection_limit` 0 means no limit. `headers`: of every request."""
    return aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(
            limit=connection_limit,
            keepalive_timeout=KEEPALIVE_SECONDS,
            socket_factory=watched_socket,
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
    )
