"""The way into a running job: a socket in its folder, through which engines are listed, added and
drained (`python -m pipeline pool`).

One JSON object a line, no pickle: a request, then any number of `{"says": ...}`, then one answer.
Whoever may open the socket (mode 0600) is the run's own user."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.errors import ConfigError, SlipstreamError

logger = logging.getLogger(__name__)

SOCKET = "pool.sock"
MAX_LINE_BYTES = 1 << 16


class EngineMembership(Protocol):
    """What can be asked of a run's engines."""

    def rows(self) -> list[dict[str, Any]]: ...
    async def add(self, address: str | None) -> str: ...
    async def drain(self, engine: str, *, now: bool, says: Callable[[str], None]) -> None: ...


class PoolChannel:
    """Serves on the run's event loop. What somebody has asked for goes on when they hang up."""

    def __init__(self, run_dir: Path, engines: EngineMembership) -> None:
        self._folder, self._engines = run_dir, engines
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        (self._folder / SOCKET).unlink(missing_ok=True)  # of a run that was killed
        try:
            with _short(self._folder) as path:
                listening.bind(path)
            (self._folder / SOCKET).chmod(0o600)  # before it listens
            self._server = await asyncio.start_unix_server(
                self._greet, sock=listening, limit=MAX_LINE_BYTES
            )
        except OSError as error:
            listening.close()
            logger.warning("`pipeline pool` will find nothing: no socket could be made (%s)", error)

    async def close(self) -> None:
        """What is under way is given up: the run is ending."""
        if self._server is None:
            return
        self._server.close()
        (self._folder / SOCKET).unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        self._server = None

    def release(self) -> None:
        """The same of the socket, without an event loop."""
        (self._folder / SOCKET).unlink(missing_ok=True)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def write(answer: Mapping[str, Any]) -> None:
            if not writer.is_closing():
                writer.write(json.dumps(answer).encode() + b"\n")

        try:
            write(await self._answer(await reader.readline(), write))
        except asyncio.CancelledError:
            write({"error": "the run is ending"})
            raise
        finally:
            writer.close()

    async def _answer(
        self, line: bytes, write: Callable[[Mapping[str, Any]], None]
    ) -> dict[str, Any]:
        try:
            asked = json.loads(line)
            match asked.get("do"):
                case "list":
                    return {"engines": self._engines.rows()}
                case "add":
                    write({"says": "it is started and given the current weights"})
                    return {"added": await self._engines.add(asked.get("address"))}
                case "drain":
                    await self._engines.drain(
                        str(asked["engine"]),
                        now=bool(asked.get("now")),
                        says=lambda text: write({"says": text}),
                    )
                    return {"drained": asked["engine"]}
                case other:
                    return {"error": f"{other!r} is not one of list, add, drain"}
        except SlipstreamError as error:
            return {"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}
        except (ValueError, KeyError, AttributeError) as error:
            return {"error": f"not a request: {type(error).__name__}: {error}"}


def ask(run_dir: Path, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a running job answers, as it comes. Raises ConfigError where none runs there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            with _short(run_dir) as path:
                connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            raise ConfigError(
                f"{run_dir}: no job runs there, or it has no engines of its own to add or drain;"
                " `--load` goes on with a run that has ended"
            ) from None
        except PermissionError:
            raise ConfigError(f"{run_dir}: the job that runs there is another user's") from None
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as answers:
            for line in answers:
                yield json.loads(line)


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A short way to the socket: the name of one may have 107 bytes."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)
