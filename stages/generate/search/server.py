"""A search server that speaks as Search-R1's retriever does:

POST /retrieve {"queries": [...], "topk": 3, "return_scores": true}
-> {"result": [[{"document": {"id": ..., "contents": "TITLE\\ntext"}, "score": 1.5}, ...], ...]}

and without scores {"result": [[{"id": ..., "contents": ...}, ...], ...]}."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.core.errors import ConfigError
from stages.generate.search.index import Found, SearchIndex

if TYPE_CHECKING:
    from aiohttp import web

MAX_BODY_BYTES = 8 << 20
MAX_QUERIES = 1024  # in one request
MAX_QUERY_CHARACTERS = 4096
MAX_TOPK = 100


class Asked(NamedTuple):
    queries: list[str]
    topk: int
    return_scores: bool


@asynccontextmanager
async def serve(index: SearchIndex, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Its URL, for as long as the block runs. `port` 0: any free one. Raises ConfigError where
    nothing can listen."""
    from aiohttp import web

    with ThreadPoolExecutor(1, "search") as thread:  # the loop goes on reading requests
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        service = _Service(index, thread)
        app.router.add_post("/retrieve", service.retrieve)
        app.router.add_get("/health", service.health)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            await _listen(web.TCPSite(runner, host, port, backlog=4096))
            address = f"[{host}]" if ":" in host else host
            yield f"http://{address}:{runner.addresses[0][1]}/retrieve"
        finally:
            await runner.cleanup()


async def _listen(site: web.TCPSite) -> None:
    try:
        await site.start()
    except OSError as error:
        raise ConfigError(
            f"the search server cannot listen at {site.name} ({error}): see --host and --port"
        ) from error


class _Service:
    def __init__(self, index: SearchIndex, thread: ThreadPoolExecutor) -> None:
        self._index, self._thread = index, thread

    async def retrieve(self, request: web.Request) -> web.Response:
        from aiohttp import web

        try:
            asked = read_request(await request.read())
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        found = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._index.search, asked.queries, asked.topk
        )
        shown = [[_shown(one, asked.return_scores) for one in each] for each in found]
        return web.json_response({"result": shown})

    async def health(self, request: web.Request) -> web.Response:
        from aiohttp import web

        corpus = self._index.corpus
        return web.json_response({"passages": len(corpus.passages), "digest": corpus.digest})


def _shown(found: Found, with_score: bool) -> dict[str, Any]:
    passage, score = found
    return {"document": passage, "score": score} if with_score else passage


def read_request(body: bytes) -> Asked:
    """Raises ValueError, in words for whoever asked."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not valid JSON: {error}") from None
    if not isinstance(said, dict):
        raise ValueError('expected an object {"queries": ["..."], "topk": 3}')
    queries, topk = said.get("queries"), said.get("topk")
    topk = 3 if topk is None else topk
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise ValueError(f"queries: expected a list of strings, got {str(queries)[:80]}")
    if len(queries) > MAX_QUERIES:
        raise ValueError(f"queries: at most {MAX_QUERIES} in one request, got {len(queries)}")
    if not isinstance(topk, int) or isinstance(topk, bool) or not 0 < topk <= MAX_TOPK:
        raise ValueError(f"topk: expected a whole number from 1 to {MAX_TOPK}, got {topk!r}")
    if not isinstance(said.get("return_scores", False), bool):
        raise ValueError(f"return_scores: expected true or false, got {said['return_scores']!r}")
    return Asked(
        [q[:MAX_QUERY_CHARACTERS] for q in queries], topk, said.get("return_scores", False)
    )
