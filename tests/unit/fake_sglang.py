"""A scripted server that speaks as much of SGLang's HTTP interface as the client uses, and a pool
of such servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

Step = Callable[[dict[str, Any]], Awaitable[web.Response]]


def answer(
    ids: Sequence[int] = (65, 66, 67),
    *,
    spans: Sequence[tuple[Any, int, int]] | None = None,
    cached: int = 0,
    finish: str = "stop",
) -> dict[str, Any]:
    labels = [
        {"version": str(v), "start": s, "end": e}
        for v, s, e in (spans if spans is not None else [(0, 0, len(ids))])
    ]
    return {
        "text": bytes(ids).decode(),
        "output_ids": list(ids),
        "meta_info": {
            "finish_reason": {"type": finish},
            "output_token_logprobs": [
                [-0.25 * (i + 1), token, None] for i, token in enumerate(ids)
            ],
            "weight_version": labels[-1]["version"] if labels else "0",
            "weight_versions": labels,
            "cached_tokens": cached,
        },
    }


def says(body: dict[str, Any] | None = None, status: int = 200) -> Step:
    async def step(request: dict[str, Any]) -> web.Response:
        return web.json_response(body if body is not None else answer(), status=status)

    return step


async def drops(request: dict[str, Any]) -> web.Response:
    """The connection breaks without an answer."""
    raise ConnectionResetError


@dataclass
class FakeSGLang:
    """Answers its n-th /generate with the n-th step of the script, and with the last one from there
    on. Its control routes do what they are told and write it down. `key`: what it asks for."""

    script: list[Step] = field(default_factory=lambda: [says()])
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)  # of every /generate
    aborted: list[str] = field(default_factory=list)
    received: asyncio.Event = field(default_factory=asyncio.Event)
    abort_seen: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    key: str | None = None
    label: str = "default"
    paused: bool = False
    num_busy: int = 0  # so many flushes are refused
    calls: list[str] = field(default_factory=list)  # control routes, in order
    model: dict[str, Any] = field(default_factory=dict)  # more of /model_info
    server: dict[str, Any] = field(default_factory=dict)  # /server_info

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.received.set()
        try:
            return await self.script[min(len(self.requests), len(self.script)) - 1](body)
        except ConnectionResetError:
            assert request.transport is not None
            request.transport.abort()
            raise

    async def abort(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.calls.append("abort_request")
        self.aborted.append("*" if body.get("abort_all") else body["rid"])
        self.abort_seen.set()
        return web.Response()

    async def control(self, request: web.Request) -> web.Response:
        path = request.path.strip("/")
        if request.method == "GET":
            return web.json_response(
                {"weight_version": self.label, **self.model}
                if path == "model_info"
                else self.server
            )
        body = await request.json() if request.can_read_body else {}
        self.calls.append(path)
        match path:
            case "pause_generation" | "continue_generation":
                self.paused = path.startswith("pause")
            case "update_weight_version":
                self.label = body["new_version"]
            case "update_weights_from_disk":
                self.label = body["weight_version"]
            case "flush_cache" if self.num_busy:
                self.num_busy -= 1
                return web.Response(status=400, text="requests run")
        return web.json_response({"success": True})

    @web.middleware
    async def ask_for_key(self, request: web.Request, handler: Any) -> web.StreamResponse:
        asks = self.key is not None and not request.path.startswith(("/health", "/ready"))
        if asks and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    @asynccontextmanager
    async def running(self, port: int | None = None) -> AsyncIterator[FakeSGLang]:
        app = web.Application(middlewares=[self.ask_for_key])
        app.router.add_post("/generate", self.generate)
        app.router.add_post("/abort_request", self.abort)
        app.router.add_route("*", "/{control:.*}", self.control)
        async with TestServer(app, host="127.0.0.1", port=port) as server:
            self.url = str(server.make_url("")).rstrip("/")
            yield self


class FakePool:
    """Leases round-robin over what is healthy; a reported engine is out."""

    def __init__(self, urls: Sequence[str], versions: Sequence[int] = ()) -> None:
        self.endpoints = list(urls)
        self.versions = dict(zip(urls, versions or [0] * len(urls), strict=True))
        self.reported: list[tuple[str, Exception]] = []
        self.sessions: list[str | None] = []
        self.stay_healthy = False

    @asynccontextmanager
    async def lease(self, session_id: str | None = None) -> AsyncIterator[str]:
        self.sessions.append(session_id)
        down = set() if self.stay_healthy else {url for url, _ in self.reported}
        yield next(url for url in self.endpoints if url not in down)

    def version_of(self, endpoint: str) -> int:
        return self.versions[endpoint]

    async def report_failure(self, endpoint: str, error: Exception) -> None:
        self.reported.append((endpoint, error))
