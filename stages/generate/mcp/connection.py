"""One server for all samples of a process: started by the first that needs it, again by the first
after it went away, and closed a while after the last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, TextIO
from weakref import WeakKeyDictionary

from pipeline.core.errors import ConfigError, ToolServerError
from stages.generate.mcp.last_words import LastWords
from stages.generate.mcp.transport import ServerAddress, open_transport

logger = logging.getLogger(__name__)
LINGER_SECONDS = 60.0  # between two rollouts nobody may need it
FIRST_PAUSE_SECONDS = 1.0  # after a start that failed; doubles up to LONGEST_PAUSE_SECONDS
LONGEST_PAUSE_SECONDS = 30.0
MAX_PAGES = 100  # of its list of tools


class Connection:
    """`users`: how many have taken it and not given it back."""

    def __init__(self, address: ServerAddress, start_timeout_seconds: float) -> None:
        self.address = address
        self.users = 0
        self.num_starts = 0
        self.linger: asyncio.TimerHandle | None = None
        self._start_timeout_seconds = start_timeout_seconds
        self._live: _Live | None = None
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._not_before = 0.0  # on the loop's clock
        self._failure = ""

    async def live(self) -> _Live:
        """Starts the server if it does not run. Raises ToolServerError where it does not start, and
        for a while after that."""
        live = self._live
        if live is None or live.is_over:
            live = self._live = self._started()
        try:
            await asyncio.shield(live.ready)
        except ToolServerError as error:
            self._failed(str(error))
            raise
        self._pause_seconds = FIRST_PAUSE_SECONDS
        return live

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    async def closed(self) -> None:
        """Until it has ended."""
        self.close()
        if self._live is not None:
            await asyncio.wait({self._live.task})

    def _started(self) -> _Live:
        loop = asyncio.get_running_loop()
        if loop.time() < self._not_before:
            raise ToolServerError(self._failure)
        self.num_starts += 1
        if self.num_starts > 1:
            said = self._live.last_words if self._live else ""
            logger.warning("the MCP server %s is started again%s", self.address, said)
        return _Live(self.address, self._start_timeout_seconds)

    def _failed(self, why: str) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._not_before:  # the first of those who waited for it
            self._not_before = loop.time() + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
            self._failure = why


class _Live:
    """A client that runs, or is about to. Its streams belong to one task, from start to end."""

    def __init__(self, address: ServerAddress, start_timeout_seconds: float) -> None:
        self.client: Any = None
        self.tools: list[Any] = []  # as the server lists them
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._address, self._start_timeout_seconds = address, start_timeout_seconds
        self.last_words = ""
        self._ended = asyncio.Event()
        self.task = asyncio.create_task(self._run(), name=f"MCP server {address}")

    @property
    def is_over(self) -> bool:
        return self._ended.is_set() or self.task.done()

    def stop(self) -> None:
        self._ended.set()

    async def _run(self) -> None:
        try:
            await self._serve()
        except asyncio.CancelledError:
            self._fail("it was stopped")
            raise
        except BaseException as error:
            if not isinstance(error, Exception | BaseExceptionGroup):
                raise
            if self.ready.done():
                logger.warning("the MCP server %s went away: %s", self._address, _in_words(error))
            self._fail(f"{_in_words(error)}{self.last_words}")
        finally:
            self._ended.set()

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            stderr = stack.enter_context(self._hearing())
            client = import_client()(open_transport(self._address, self._ended, stderr))
            try:
                async with asyncio.timeout(self._start_timeout_seconds):
                    await stack.enter_async_context(client)
                    self.tools = await _listed(client)
            except TimeoutError:
                raise TimeoutError(f"not ready after {self._start_timeout_seconds:g} s") from None
            self.client = client
            if not self.ready.done():
                self.ready.set_result(None)
            await self._ended.wait()

    @contextmanager
    def _hearing(self) -> Iterator[TextIO]:
        words = LastWords()
        try:
            yield words.file
        finally:
            self.last_words = words.text()
            words.close()

    def _fail(self, why: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(
                ToolServerError(f"the MCP server {self._address} did not start: {why}")
            )
            self.ready.exception()  # perhaps nobody waits any more


_connections: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[ServerAddress, Connection]] = (
    WeakKeyDictionary()
)


def take(address: ServerAddress, start_timeout_seconds: float) -> Connection:
    """The one of this address on this loop; `give_back` it."""
    import_client()  # says so now where the package is missing
    known = _connections.setdefault(asyncio.get_running_loop(), {})
    connection = known.setdefault(address, Connection(address, start_timeout_seconds))
    connection.users += 1
    if connection.linger is not None:
        connection.linger.cancel()
        connection.linger = None
    return connection


def give_back(connection: Connection) -> None:
    connection.users -= 1
    if not connection.users:
        loop = asyncio.get_running_loop()
        connection.linger = loop.call_later(LINGER_SECONDS, connection.close)


def import_client() -> Callable[..., Any]:
    try:
        from mcp import Client
    except ImportError as error:
        raise ConfigError(
            f"tools of an MCP server need the package mcp ({error}): pip install 'slipstream[mcp]'"
        ) from error
    return Client


async def _listed(client: Any) -> list[Any]:
    found: list[Any] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if not cursor:
            return found
    raise ValueError(f"its list of tools has more than {MAX_PAGES} pages")


def _in_words(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
