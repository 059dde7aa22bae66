"""Servers that speak SGLang's control endpoints and nothing else, and a pool and a sender that are
fakes at their seams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from pipeline.core.errors import StaleWeightsError
from pipeline.core.types import PreparedWeights
from stages.publish.buckets import TensorMeta

METAS = [[("a", "float32", [2, 3]), ("b", "bfloat16", [4])], [("c", "float32", [1])]]
TWO_SENDERS = {0: METAS, 3: [[("d", "float32", [2])]]}


class FakeServer:
    """Keeps SGLang's rules: a version comes with the weights, updates need begin/end, a flush is
    refused unless paused."""

    def __init__(self) -> None:
        self.version, self.paused, self.updating = 0, False, False
        self.groups: set[str] = set()
        self.calls: list[str] = []
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.refuse: dict[str, int] = {}  # path -> how many calls are still answered 400
        self.dies_at: str | None = None  # the path whose next call is its end
        self.dead = False
        self.entered: dict[str, asyncio.Event] = {}
        self.blocked: dict[str, asyncio.Event] = {}
        self.endpoint = ""
        self.weights = self.brings = "as loaded"  # what it holds, and what a push leaves there

    async def handle(self, request: web.Request) -> web.Response:
        path = request.path.removeprefix("/")
        body = await request.json() if request.can_read_body else {}
        self.calls.append(path)
        self.bodies.append((path, body))
        if path == self.dies_at:
            self.dead, self.dies_at = True, None
        if self.dead:
            assert request.transport is not None
            request.transport.abort()
            raise ConnectionResetError
        if path in self.blocked:
            self.entered[path].set()
            await self.blocked[path].wait()
        if self.refuse.get(path, 0) > 0:
            self.refuse[path] -= 1
            return web.json_response(
                {"success": False, "message": f"{path} is refused"}, status=400
            )
        error = self.act(path, body)
        if path == "model_info":
            return web.json_response({"weight_version": str(self.version)})
        if path == "weights_checker" and body["action"] == "checksum":
            return web.json_response(
                {"success": True, "ranks": [{"checksums": {"a": "same", "b": self.weights}}]}
            )
        return web.json_response(
            {"success": error is None, "message": error or "ok"},
            status=200 if error is None else 400,
        )

    def act(self, path: str, body: dict[str, Any]) -> str | None:
        if path == "pause_generation":
            self.paused = True
        elif path == "continue_generation":
            self.paused = False
        elif path == "init_weights_update_group":
            self.groups.add(body["group_name"])
        elif path == "destroy_weights_update_group":
            if body["group_name"] not in self.groups:
                return "no such group"
            self.groups.remove(body["group_name"])
        elif path == "begin_weight_update":
            if self.updating or not self.paused:
                return "already open, or not paused"
            self.updating = True
        elif path == "end_weight_update":
            self.updating = False
        elif path == "update_weights_from_distributed":
            if not self.updating or body["group_name"] not in self.groups:
                return "no session or no group"
            self.version = int(body.get("weight_version", self.version))
            self.weights = self.brings
        elif path == "update_weights_from_tensor":
            if not self.updating:
                return "no session"
            self.version = int(body.get("weight_version", self.version))
            self.weights = self.brings
        elif path == "weights_checker" and body["action"] == "reset_tensors":
            self.weights = "wiped"
        elif path == "update_weights_from_disk":
            self.version = int(body["weight_version"])
        return None

    def restart(self) -> None:
        self.dead = False
        self.version, self.paused, self.updating = 0, False, False
        self.groups.clear()
        self.refuse.clear()


class FakePool:
    """Restarts condemned servers at once and resyncs them when someone waits for that."""

    def __init__(self, servers: list[FakeServer]) -> None:
        self.servers = {server.endpoint: server for server in servers}
        self.versions = dict.fromkeys(self.servers, 0)
        self.gated: set[str] = set()
        self.condemned: list[str] = []
        self.down: set[str] = set()
        self.lost: set[str] = set()
        self.in_flight: dict[str, asyncio.Event] = {}  # set when its requests have ended
        self.reports: list[str] = []
        self.on_restart: Callable[[str], Awaitable[None]] | None = None
        self.on_leave: Callable[[str, Callable[[], None]], Awaitable[None]] | None = None

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(self.servers)

    def version_of(self, endpoint: str) -> int:
        return self.versions[endpoint]

    @asynccontextmanager
    async def lease(self, session_id: str | None = None) -> AsyncIterator[str]:
        yield self.endpoints[0]

    async def report_failure(self, endpoint: str, error: Exception) -> None:
        self.reports.append(endpoint)

    def begin_push(self, endpoint: str) -> None:
        assert endpoint not in self.gated
        self.gated.add(endpoint)

    async def drained(self, endpoint: str) -> None:
        assert endpoint in self.gated
        if endpoint in self.in_flight:
            await self.in_flight[endpoint].wait()

    def end_push(self, endpoint: str, version: int | None) -> None:
        self.gated.remove(endpoint)
        if version is not None:
            self.versions[endpoint] = version

    def condemn(self, endpoint: str, reason: str) -> None:
        if endpoint not in self.down:
            self.condemned.append(endpoint)
            self.down.add(endpoint)

    def is_up(self, endpoint: str) -> bool:
        return endpoint not in self.down | self.lost

    async def settled(self, endpoint: str) -> bool:
        if endpoint in self.lost:
            return False
        if endpoint in self.down:
            self.down.remove(endpoint)
            self.servers[endpoint].restart()
            self.versions[endpoint] = 0
            assert self.on_restart is not None
            await self.on_restart(endpoint)
        return True


class FakeSender:
    """Of one rank, unless told otherwise. `went_on`: the learner did, and kept no copy."""

    def __init__(self, buckets: Mapping[int, list[list[TensorMeta]]] | None = None) -> None:
        self.buckets = buckets or {0: METAS}
        self.copied, self.went_on = True, False
        self.events: list[tuple[str, int]] = []  # what which sender did, in order
        self.joined: list[str] = []
        self.worlds: list[int] = []
        self.left: list[str] = []
        self.sent: list[tuple[str, int]] = []
        self.prepared: list[tuple[int, int | None]] = []
        self.passes = 0
        self.failures: list[Exception] = []  # of the next broadcasts

    async def meeting_place(self, sender: int) -> tuple[str, int]:
        return "127.0.0.1", 20000 + len(self.joined)

    async def join(
        self, sender: int, group_name: str, address: str, port: int, world_size: int, backend: str
    ) -> None:
        self.events.append(("join", sender))
        self.joined.append(group_name)
        self.worlds.append(world_size)

    async def leave(self, sender: int, group_name: str) -> None:
        self.left.append(group_name)

    async def prepare(self, max_bucket_bytes: int, max_copy_bytes: int | None) -> PreparedWeights:
        self.prepared.append((max_bucket_bytes, max_copy_bytes))
        self.went_on = False
        return PreparedWeights(buckets=self.buckets, copied=self.copied)

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        if self.went_on and not self.copied:
            raise StaleWeightsError("the learner has gone on")
        self.passes += 1
        yield

    async def broadcast(self, sender: int, group_name: str, bucket: int) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.events.append(("broadcast", sender))
        self.sent.append((group_name, bucket))

    async def export_hf(self, path: Path) -> None:
        path.joinpath("model.safetensors").write_bytes(b"x" * 100)


class FakeLender:
    """Handles that say which bucket of which rank they are, and for whom."""

    def __init__(self) -> None:
        self.gathered: list[int] = []
        self.lent: list[tuple[int, dict[int, int]]] = []
        self.out: set[int] = set()  # ranks that have lent something
        self.failures: list[Exception] = []  # of the next loans
        self.closed = False

    async def gather(self, max_bucket_bytes: int) -> list[list[tuple[str, str, list[int]]]]:
        self.gathered.append(max_bucket_bytes)
        return METAS

    async def lend(
        self, bucket: int, metas: Sequence[tuple[str, str, list[int]]], readers: Mapping[int, int]
    ) -> dict[int, list[bytes]]:
        assert not self.out and metas == METAS[bucket]
        self.out = set(readers)
        if self.failures:
            raise self.failures.pop(0)
        self.lent.append((bucket, dict(readers)))
        return {
            rank: [f"bucket {bucket} of rank {rank}, {i}".encode() for i in range(count)]
            for rank, count in readers.items()
        }

    async def take_back(self, ranks: Iterable[int]) -> None:
        self.out -= set(ranks)

    async def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def running(count: int) -> AsyncIterator[list[FakeServer]]:
    fakes, servers = [FakeServer() for _ in range(count)], []
    for fake in fakes:
        app = web.Application()
        app.router.add_route("*", "/{path}", fake.handle)
        server = TestServer(app)
        await server.start_server()
        fake.endpoint = str(server.make_url("")).rstrip("/")
        servers.append(server)
    try:
        yield fakes
    finally:
        for server in servers:
            await server.close()


async def no_sleep(_: float) -> None:
    await asyncio.sleep(0)
