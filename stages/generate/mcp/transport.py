"""How a server of the Model Context Protocol is reached: as a subprocess that speaks over its
standard streams, or by streamable HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from pipeline.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """Either `command` or `url`. Equal ones are one server to a process."""

    command: str | None = None
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    url: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if (self.command is None) == (self.url is None):
            raise ConfigError(
                "mcp_tools takes the command of a server (stdio) or its url (streamable HTTP), one"
                f" of the two: got command={self.command!r}, url={self.url!r}"
            )

    def __str__(self) -> str:
        return self.url or " ".join([str(self.command), *self.args])


@asynccontextmanager
async def open_transport(
    address: ServerAddress, ended: asyncio.Event, stderr: TextIO
) -> AsyncIterator[Any]:
    """The two streams, as `mcp.Client` takes them. `ended` is set when nothing more can come, which
    a client says only to whoever waits for an answer. `stderr`: a process's."""
    async with _transport(address, stderr) as (read, write):
        yield _Watched(read, ended), write


def _transport(address: ServerAddress, stderr: TextIO) -> AbstractAsyncContextManager[Any]:
    from mcp.client.stdio import StdioServerParameters, stdio_client
    from mcp.client.streamable_http import streamable_http_client

    if address.url is None:
        parameters = StdioServerParameters(
            command=str(address.command), args=list(address.args), env=dict(address.env)
        )
        return stdio_client(parameters, errlog=stderr)
    if not address.headers:
        return streamable_http_client(address.url)
    return _with_headers(address.url, dict(address.headers))


@asynccontextmanager
async def _with_headers(url: str, headers: dict[str, str]) -> AsyncIterator[Any]:
    from mcp.client.streamable_http import streamable_http_client
    from mcp.shared._httpx_utils import create_mcp_http_client

    async with (
        create_mcp_http_client(headers=headers) as http,
        streamable_http_client(url, http_client=http) as streams,
    ):
        yield streams


class _Watched:
    """A stream of messages that tells when it has ended."""

    def __init__(self, stream: Any, ended: asyncio.Event) -> None:
        self._stream, self._ended = stream, ended

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def receive(self) -> Any:
        try:
            return await self._stream.receive()
        except Exception:
            self._ended.set()
            raise

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._stream.__anext__()
        except Exception:  # StopAsyncIteration above all
            self._ended.set()
            raise

    async def __aenter__(self) -> _Watched:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> Any:
        return await self._stream.__aexit__(*error)
