"""The search server and the tool that asks it, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pipeline.core.errors import ConfigError, GenerateError
from stages.generate.search.corpus import Corpus
from stages.generate.search.index import SearchIndex
from stages.generate.search.server import MAX_BODY_BYTES, MAX_QUERIES, serve
from stages.generate.search.tool import search_tool

ROWS = [{"contents": "Alps\nhigh peaks", "id": "a"}, {"contents": "Sea\nwet", "id": "s"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


@pytest.fixture
async def url(folder: Path) -> AsyncIterator[str]:
    async with serve(SearchIndex(Corpus(folder))) as url:
        yield url


async def post(url: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with aiohttp.ClientSession() as http, http.post(url, data=data) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if text.startswith("{") else text


async def test_it_answers_as_search_r1s_retriever(url: str) -> None:
    asked = {"queries": ["peaks", "nothing", "wet"], "topk": 2, "return_scores": True}
    status, said = await post(url, asked)
    assert status == 200
    assert [[one["document"] for one in each] for each in said["result"]] == [
        [ROWS[0]],
        [],
        [ROWS[1]],
    ]
    assert all(one["score"] > 0 for each in said["result"] for one in each)
    _, bare = await post(url, {"queries": ["peaks"]})
    assert bare == {"result": [[ROWS[0]]]}
    _, null = await post(url, {"queries": ["peaks"], "topk": None})
    assert null == bare


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        ([], "expected an object"),
        ({"queries": "peaks"}, "queries: expected a list of strings"),
        ({"queries": [1]}, "queries: expected a list of strings"),
        ({"queries": ["x"] * (MAX_QUERIES + 1)}, f"at most {MAX_QUERIES}"),
        ({"queries": ["x"], "topk": 0}, "topk: expected a whole number from 1"),
        ({"queries": ["x"], "topk": True}, "topk: expected a whole number from 1"),
        ({"queries": ["x"], "return_scores": "yes"}, "return_scores: expected true or false"),
    ],
)
async def test_what_is_no_request_is_400_and_says_why(url: str, body: Any, told: str) -> None:
    status, said = await post(url, body)
    assert status == 400 and told in said["error"]


async def test_what_is_too_large_is_413(url: str) -> None:
    assert (await post(url, b" " * (MAX_BODY_BYTES + 1)))[0] == 413


async def test_an_address_that_is_taken(url: str, folder: Path) -> None:
    port = int(url.split(":")[2].split("/")[0])
    with pytest.raises(ConfigError, match=rf"cannot listen at .*{port}.* see --host and --port"):
        async with serve(SearchIndex(Corpus(folder)), port=port):
            pass


async def test_the_tool_asks_the_server_or_searches_the_folder(url: str, folder: Path) -> None:
    for where in (url, folder):
        tool = search_tool(where, topk=1)
        assert await tool.call({"query": "peaks of the alps"}) == "Doc 1 (Title: Alps) high peaks"
        assert await tool.call({"query": "volcano"}) == "Nothing was found."
    assert tool.definition["function"]["parameters"]["required"] == ["query"]


@asynccontextmanager
async def answering(
    answer: Callable[[int], Awaitable[web.StreamResponse]],
) -> AsyncIterator[tuple[str, list[int]]]:
    """A server whose answers are given by the number of the request."""
    seen: list[int] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(len(seen))
        return await answer(seen[-1])

    app = web.Application()
    app.router.add_post("/retrieve", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/retrieve", seen
    finally:
        await runner.cleanup()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.generate.search.tool.FIRST_PAUSE_SECONDS", 0.0)


async def test_a_server_that_stumbles_is_asked_again(no_pause: None) -> None:
    async def answer(number: int) -> web.StreamResponse:
        if number < 2:
            raise web.HTTPServiceUnavailable(text="warming up")
        return web.json_response({"result": [[{"contents": "Sea\nwet"}]]})

    async with answering(answer) as (url, seen):
        assert await search_tool(url).call({"query": "sea"}) == "Doc 1 (Title: Sea) wet"
        assert len(seen) == 3
        with pytest.raises(GenerateError, match="failed 2 times: status 503: warming up"):
            seen.clear()
            await search_tool(url, attempts=2).call({"query": "sea"})


async def test_a_server_that_refuses_is_not(no_pause: None) -> None:
    async def answer(number: int) -> web.StreamResponse:
        raise web.HTTPBadRequest(text="no")

    async with answering(answer) as (url, seen):
        with pytest.raises(GenerateError, match="refused 'sea': status 400: no"):
            await search_tool(url).call({"query": "sea"})
        assert len(seen) == 1


@pytest.mark.parametrize("said", ["{", "[]", '{"result": []}', '{"result": [[{"x": 1}]]}', "null"])
async def test_a_server_of_another_kind_is_named(said: str, no_pause: None) -> None:
    async def answer(number: int) -> web.StreamResponse:
        return web.Response(text=said)

    async with answering(answer) as (url, _):
        with pytest.raises(GenerateError, match="answered in another form"):
            await search_tool(url).call({"query": "sea"})


async def test_a_server_that_hangs_is_late(no_pause: None) -> None:
    async def answer(number: int) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with answering(answer) as (url, _):
        with pytest.raises(GenerateError, match=r"did not answer in 0\.05 s"):
            await search_tool(url, timeout_seconds=0.05).call({"query": "sea"})


async def test_only_so_many_requests_at_once() -> None:
    here, most, full = 0, 0, asyncio.Event()

    async def answer(number: int) -> web.StreamResponse:
        nonlocal here, most
        here += 1
        most = max(most, here)
        if here == 2:
            full.set()
        await full.wait()
        here -= 1
        return web.json_response({"result": [[]]})

    async with answering(answer) as (url, seen):
        tool = search_tool(url, max_concurrent=2)
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(tool.call({"query": "sea"}))
        assert len(seen) == 8 and most == 2
