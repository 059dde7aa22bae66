"""Tools of an MCP server, as an agent takes them.

async def generate(args, sample, sampling_params):
    async with (
        mcp_tools(command="uvx", args=["mcp-server-time"]) as tools,
        open_agent(args, sample, sampling_params, tools=tools) as agent,
    ):
        await agent.run()
    return agent.samples
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pipeline.core.errors import ConfigError, ToolServerError
from stages.generate.mcp.connection import Connection, give_back, take
from stages.generate.mcp.transport import ServerAddress
from stages.generate.tools.tool import Tool

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")
_MAX_NAME = 64


@asynccontextmanager
async def mcp_tools(
    *,
    command: str | None = None,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    url: str | None = None,
    headers: Mapping[str, str] | None = None,
    only: Sequence[str] | None = None,
    prefix: str = "",
    timeout_seconds: float | None = None,
    start_timeout_seconds: float = 60.0,
) -> AsyncIterator[list[Tool]]:
    """The tools of a server, with its own names, descriptions and schemas.

    `command`, `args`: a subprocess that speaks over its standard streams, with `env` beside PATH,
    HOME and the like (nothing else of this process's environment). `url`: a server of streamable
    HTTP, asked with `headers`. `only`: these of its tools. `prefix`: ahead of the names, where two
    servers have the same. `timeout_seconds`: of a call; None: --tool-timeout-seconds.

    All samples of a process share one server; it is started again when it has gone away, and calls
    that were under way raise ToolServerError, as calls do that the server answers with an error:
    the model reads it. A call that is late or cancelled is cancelled there too. Raises ConfigError
    without the package `mcp`, ToolServerError where the server does not start."""
    address = ServerAddress(
        command=command,
        args=tuple(args),
        env=tuple(sorted((env or {}).items())),
        url=url,
        headers=tuple(sorted((headers or {}).items())),
    )
    connection = take(address, start_timeout_seconds)
    try:
        listed = {tool.name: tool for tool in (await connection.live()).tools}
        if missing := set(only or ()) - listed.keys():
            raise ConfigError(
                f"mcp_tools(only=...): the server {address} has no tool {sorted(missing)}; it has"
                f" {sorted(listed)}"
            )
        yield [
            _tool(connection, listed[name], prefix, timeout_seconds)
            for name in (listed if only is None else only)
        ]
    finally:
        give_back(connection)


def _tool(connection: Connection, listed: Any, prefix: str, timeout_seconds: float | None) -> Tool:
    async def call(arguments: dict[str, Any]) -> str:
        return await _call(connection, listed.name, arguments)

    return Tool(
        name=_NOT_IN_NAMES.sub("_", prefix + listed.name)[:_MAX_NAME],
        description=listed.description or listed.title or "",
        parameters=listed.input_schema,
        call=call,
        timeout_seconds=timeout_seconds,
    )


async def _call(connection: Connection, name: str, arguments: dict[str, Any]) -> str:
    from mcp import MCPError
    from mcp_types import CONNECTION_CLOSED

    for again in (True, False):
        live = await connection.live()
        try:
            result = await live.client.call_tool(name, arguments)
        except MCPError as error:
            if _has_forgotten_us(error):  # and has run nothing
                live.stop()
                if again:
                    continue
            if error.code == CONNECTION_CLOSED:
                live.stop()
                raise ToolServerError("the server went away during the call") from error
            raise ToolServerError(error.message) from error
        except Exception as error:
            if live.is_over:
                raise ToolServerError("the server went away during the call") from error
            raise
        text = _as_text(result)
        if result.is_error:
            raise ToolServerError(text)
        return text
    raise AssertionError  # the second time always ends


def _has_forgotten_us(error: Any) -> bool:
    """By HTTP: it was started anew, and does not know the session any more."""
    from mcp_types import INVALID_REQUEST

    return error.code == INVALID_REQUEST and "session" in error.message.lower()


def _as_text(result: Any) -> str:
    """What the model reads: text as it is, of anything else what it is."""
    texts = [_of_block(block) for block in result.content]
    if not texts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(texts)


def _of_block(block: Any) -> str:
    if block.type == "text":
        return str(block.text)
    if block.type == "resource":
        resource = block.resource
        return str(getattr(resource, "text", None) or f"[resource {resource.uri}]")
    if block.type == "resource_link":
        return f"[resource {block.uri}]"
    return f"[{block.type} {getattr(block, 'mime_type', '')}]"
