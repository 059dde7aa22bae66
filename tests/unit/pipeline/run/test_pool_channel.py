"""The socket through which a running job's engines are changed."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import parser
from pipeline.cli.pool import pool_lines
from pipeline.core.errors import ConfigError, EngineError
from pipeline.run.pool_channel import SOCKET, PoolChannel, ask

ROWS = [
    {"engine": "http://a:1", "version": 3, "in_flight": 12, "restarts": 0, "state": "serving"},
    {"engine": "http://b:22", "version": None, "in_flight": 0, "restarts": 2, "state": "starting"},
]


class FakeEngines:
    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.drained = asyncio.Event()

    def rows(self) -> list[dict[str, Any]]:
        return ROWS

    async def add(self, address: str | None) -> str:
        self.asked.append(("add", address))
        return "http://c:3"

    async def drain(self, engine: str, *, now: bool, says: Callable[[str], None]) -> None:
        self.asked.append(("drain", engine, now))
        if engine == "last":
            raise EngineError("it is the last engine")
        says("12 requests in flight")
        await asyncio.sleep(0)
        self.drained.set()


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[FakeEngines]:
    engines = FakeEngines()
    channel = PoolChannel(folder, engines)
    await channel.start()
    try:
        yield engines
    finally:
        await channel.close()


async def command(folder: Path, *words: str) -> list[str]:
    """What `python -m pipeline pool` prints."""
    args = parser().parse_args(["pool", str(folder), *words])
    return await asyncio.to_thread(lambda: list(pool_lines(args, folder)))


async def test_engines_are_listed_added_and_drained(tmp_path: Path) -> None:
    async with serving(tmp_path) as engines:
        listed = await command(tmp_path)
        assert listed == await command(tmp_path, "list")
        assert [line.split() for line in listed] == [
            ["engine", "state", "version", "in", "flight", "restarts"],
            ["http://a:1", "serving", "3", "12", "0"],
            ["http://b:22", "starting", "-", "0", "2"],
        ]
        assert (await command(tmp_path, "add"))[-1] == "http://c:3 takes requests"
        await command(tmp_path, "add", "c:3")
        said = await command(tmp_path, "drain", "http://a:1", "--now")
        assert said == ["12 requests in flight ...", "http://a:1 has left"]
        assert engines.asked == [("add", None), ("add", "c:3"), ("drain", "http://a:1", True)]


async def test_a_refusal_is_the_commands_own_error(tmp_path: Path) -> None:
    async with serving(tmp_path):
        with pytest.raises(EngineError, match="it is the last engine"):
            await command(tmp_path, "drain", "last")


async def test_only_its_owner_may_open_it_and_the_end_of_the_run_removes_it(tmp_path: Path) -> None:
    (tmp_path / SOCKET).write_text("left by a run that was killed")
    async with serving(tmp_path):
        mode = (tmp_path / SOCKET).stat().st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    assert not (tmp_path / SOCKET).exists()
    with pytest.raises(ConfigError, match="no job runs there"):
        await command(tmp_path, "list")


async def test_a_socket_that_a_killed_run_left_is_no_running_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "n"
    folder.mkdir()
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    monkeypatch.chdir(folder)  # an absolute path may be too long for a socket
    dead.bind(SOCKET)
    dead.close()
    with pytest.raises(ConfigError, match="no job runs there"):
        await command(folder, "list")


async def test_a_folder_may_have_a_long_name(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    async with serving(folder):
        assert len(await command(folder)) == 3


@pytest.mark.parametrize("line", [b"no json\n", b"[]\n", b'{"do": "stop"}\n', b'{"do":"drain"}\n'])
async def test_what_is_no_request_is_answered_as_such(tmp_path: Path, line: bytes) -> None:
    async with serving(tmp_path):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET))
        writer.write(line)
        assert b'"error"' in await reader.readline()
        writer.close()


async def test_what_was_asked_for_goes_on_when_the_asker_hangs_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as engines:

        def hang_up() -> None:
            next(answers := ask(tmp_path, {"do": "drain", "engine": "http://a:1"}))
            answers.close()

        await asyncio.to_thread(hang_up)
        async with asyncio.timeout(60):
            await engines.drained.wait()
