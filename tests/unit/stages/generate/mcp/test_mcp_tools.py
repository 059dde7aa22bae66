"""Tools of real servers, over standard streams and by HTTP."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
from starlette.responses import Response

from pipeline.core.errors import ConfigError, ToolServerError
from stages.engine.mock import MockTokenizer
from stages.generate.mcp import connection as connections
from stages.generate.mcp.tools import mcp_tools
from stages.generate.tools.calls import Call
from stages.generate.tools.tool import Tool
from stages.generate.tools.toolbox import Toolbox

SERVER = Path(__file__).with_name("server.py")
STDIO: dict[str, Any] = {"command": sys.executable, "args": [str(SERVER)], "env": {"SECRET": "s3"}}


def by_name(tools: list[Tool]) -> dict[str, Tool]:
    return {tool.name: tool for tool in tools}


@pytest.fixture(autouse=True)
async def nothing_left(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Every server is closed, and no process of one is left."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    for one in list(connections._connections.get(asyncio.get_running_loop(), {}).values()):
        assert not one.users
        await one.closed()
    left = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
    assert not [c for c in left if SERVER.name in " ".join(c.cmdline())]


@asynccontextmanager
async def serving(port: int = 0, *, old: bool = False, **options: Any) -> AsyncIterator[int]:
    """The same server by HTTP, in this loop; its port. `old`: of a version with sessions."""
    from mcp.server.mcpserver import MCPServer

    shop = MCPServer("shop")
    from tests.unit.stages.generate.mcp import server as module

    for function in (module.price, module.refuse, module.hang, module.until_cancelled):
        shop.add_tool(function)
    app: Any = shop.streamable_http_app(**options)
    config = uvicorn.Config(
        without_discovery(app) if old else app, port=port, log_level="error", lifespan="on"
    )
    http = uvicorn.Server(config)
    http.install_signal_handlers = lambda: None  # type: ignore[attr-defined, method-assign]
    socket = config.bind_socket()
    task = asyncio.create_task(http.serve(sockets=[socket]))
    try:
        yield socket.getsockname()[1]
    finally:
        http.should_exit = http.force_exit = True
        await task
        socket.close()


def without_discovery(app: Any) -> Any:
    async def asked(scope: Any, receive: Any, send: Any) -> None:
        if (b"mcp-method", b"server/discover") in scope.get("headers", ()):
            await Response(status_code=404)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return asked


async def test_the_servers_own_schemas_and_what_its_calls_say() -> None:
    async with mcp_tools(**STDIO) as listed:
        tools = by_name(listed)
        price = tools["price"]
        assert price.description == "What something costs."
        said = price.parameters["properties"]
        assert said["item"]["description"] == "what to buy" and said["count"]["default"] == 1
        assert said["unit"]["enum"] == ["EUR", "USD"] and price.parameters["required"] == ["item"]
        assert await price.call({"item": "nuts", "count": 2}) == "8 EUR"
        assert '"nuts": 3' in await tools["shop_stock"].call({})  # named as models may name it
        with pytest.raises(ToolServerError, match="no nuts today"):
            await tools["refuse"].call({"why": "no nuts today"})


async def test_what_goes_wrong_is_something_to_read() -> None:
    async with mcp_tools(**STDIO, only=["refuse", "hang", "price"], prefix="shop.") as tools:
        assert [tool.name for tool in tools] == ["shop.refuse", "shop.hang", "shop.price"]
        toolbox = Toolbox(tools, MockTokenizer(), timeout_seconds=0.2, max_output_tokens=1000)
        refused, late, wrong = await toolbox.answer(
            [
                Call(name="shop.refuse", arguments={"why": "sold out"}),
                Call(name="shop.hang", arguments={}),
                Call(name="shop.price", arguments={"item": 3}),
            ]
        )
        assert "shop.refuse failed: ToolServerError" in refused and "sold out" in refused
        assert late == "error: shop.hang took more than 0.2 s"
        assert "shop.price takes other arguments" in wrong
        assert toolbox.errors == {"raised": 1, "timeout": 1, "arguments": 1}


async def test_all_samples_share_one_process_and_it_is_started_again_when_it_dies() -> None:
    async def sample() -> str:
        async with mcp_tools(**STDIO) as tools:
            await by_name(tools)["price"].call({"item": "x"})
            return await by_name(tools)["counted"].call({})

    async with mcp_tools(**STDIO) as listed:
        said = [(await sample()).split() for _ in range(3)]
        assert [one[0] for one in said] == ["1", "2", "3"] and len({one[1] for one in said}) == 1
        assert said[0][2] == "s3"
        tools = by_name(listed)
        hanging = asyncio.create_task(tools["until_cancelled"].call({}))
        await tools["price"].call({"item": "x"})  # behind it on the same stream
        with pytest.raises(ToolServerError, match="went away during the call"):
            await tools["die"].call({})
        with pytest.raises(ToolServerError, match="went away during the call"):
            await hanging
        count, pid, _ = (await tools["counted"].call({})).split()
        assert count == "0" and pid != said[0][1]
        psutil.Process(int(pid)).kill()  # while nobody asks anything
        (one,) = connections._connections[asyncio.get_running_loop()].values()
        assert one._live is not None
        await asyncio.wait_for(one._live._ended.wait(), 20)
        assert (await tools["counted"].call({})).split()[1] != pid
        assert one.num_starts == 3


async def test_a_cancelled_call_is_cancelled_there() -> None:
    async with mcp_tools(**STDIO) as listed:
        tools = by_name(listed)
        task = asyncio.create_task(tools["hang"].call({}))
        await tools["price"].call({"item": "x"})  # the call is on its way
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await tools["until_cancelled"].call({}) == "it was cancelled"


async def test_it_is_closed_a_while_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.0)
    async with mcp_tools(**STDIO) as tools:
        pid = int((await by_name(tools)["counted"].call({})).split()[1])
    (one,) = connections._connections[asyncio.get_running_loop()].values()
    assert one._live is not None
    await asyncio.wait_for(asyncio.shield(one._live.task), 20)
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("stateless", [False, True])
async def test_by_http_and_over_a_restart(stateless: bool) -> None:
    async with (
        serving(stateless_http=stateless) as port,
        mcp_tools(url=f"http://127.0.0.1:{port}/mcp", headers={"X-Who": "me"}) as listed,
    ):
        tools = by_name(listed)
        assert await tools["price"].call({"item": "nuts"}) == "4 EUR"
        with pytest.raises(ToolServerError, match="sold out"):
            await tools["refuse"].call({"why": "sold out"})
    with pytest.raises(ToolServerError):
        await tools["price"].call({"item": "nuts"})
    (one,) = connections._connections[asyncio.get_running_loop()].values()
    one._not_before = 0.0  # not the pause
    async with serving(port, stateless_http=stateless):
        assert await tools["price"].call({"item": "nuts"}) == "4 EUR"
        await one.closed()


async def test_a_server_that_has_forgotten_the_session_is_asked_in_a_new_one() -> None:
    """It was started anew while nobody asked anything."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(AsyncExitStack())
        port = await first.enter_async_context(serving(old=True))
        listed = await stack.enter_async_context(mcp_tools(url=f"http://127.0.0.1:{port}/mcp"))
        price = by_name(listed)["price"]
        assert await price.call({"item": "nuts"}) == "4 EUR"
        await first.aclose()
        await stack.enter_async_context(serving(port, old=True))
        assert await price.call({"item": "nuts"}) == "4 EUR"
        (one,) = connections._connections[asyncio.get_running_loop()].values()
        assert one.num_starts == 2
        await one.closed()


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ({"command": "/nowhere/server"}, "/nowhere/server did not start: FileNotFoundError"),
        (
            {"command": sys.executable, "args": ["-c", "raise OSError('no shop' + 9 * '!')"]},
            r"(?s)did not start: MCPError.*last words: Traceback.*OSError: no shop!!!!!!!!!\)",
        ),
        ({"url": "http://127.0.0.1:9/mcp"}, r"127\.0\.0\.1:9/mcp did not start: ConnectError"),
        (
            {"command": sys.executable, "args": ["-c", "input(); input(); input()"]},
            r"did not start: TimeoutError: not ready after 0\.2 s",
        ),
    ],
)
async def test_a_server_that_does_not_start(where: dict[str, Any], told: str) -> None:
    seconds = 0.2 if "0" in told and "Timeout" in told else 60.0
    for _ in range(2):  # the second time at once: it is not started again for a while
        with pytest.raises(ToolServerError, match=told):
            async with mcp_tools(**where, start_timeout_seconds=seconds):
                pass
    (one,) = connections._connections[asyncio.get_running_loop()].values()
    assert one.num_starts == 1


async def test_what_is_asked_for_wrongly() -> None:
    for where in ({}, {"command": "x", "url": "http://x"}):
        with pytest.raises(ConfigError, match="one of the two"):
            async with mcp_tools(**where):  # type: ignore[arg-type]
                pass
    with pytest.raises(ConfigError, match=r"has no tool \['prise'\]; it has \['counted'"):
        async with mcp_tools(**STDIO, only=["prise"]):
            pass


async def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ConfigError, match=r"pip install 'slipstream\[mcp\]'"):
        async with mcp_tools(**STDIO):
            pass
