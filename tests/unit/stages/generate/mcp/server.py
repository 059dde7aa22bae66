"""A server of the Model Context Protocol, with the package `mcp`: what the tests here start, as a
process (`python server.py`) or as an application for uvicorn."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

server = MCPServer("shop")
state: dict[str, Any] = {"calls": 0, "cancelled": None}


@server.tool()
def price(
    item: Annotated[str, Field(description="what to buy")],
    count: int = 1,
    unit: Literal["EUR", "USD"] = "EUR",
) -> str:
    """What something costs."""
    state["calls"] += 1
    return f"{len(item) * count} {unit}"


@server.tool(name="shop/stock")
def stock() -> dict[str, int]:
    """What there is."""
    return {"nuts": 3}


@server.tool()
def refuse(why: str) -> str:
    """Never works."""
    raise ToolError(why)


@server.tool()
def counted() -> str:
    """How often `price` was called since the start, and in which process."""
    return f"{state['calls']} {os.getpid()} {os.environ.get('SECRET', '-')}"


def _cancelled() -> asyncio.Event:
    state["cancelled"] = state["cancelled"] or asyncio.Event()
    return state["cancelled"]


@server.tool()
async def hang() -> str:
    """Never answers."""
    cancelled = _cancelled()
    try:
        await asyncio.Event().wait()
    finally:
        cancelled.set()
    return ""


@server.tool()
async def until_cancelled() -> str:
    """Answers when a call of `hang` was cancelled."""
    await _cancelled().wait()
    return "it was cancelled"


@server.tool()
def die() -> str:
    """Ends the process."""
    os._exit(3)


if __name__ == "__main__":
    server.run()
