"""The tool that searches: it asks a server that speaks as Search-R1's retriever does, or searches a
folder in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp

from pipeline.core.errors import GenerateError
from stages.generate.http_session import open_http_session
from stages.generate.search.corpus import Corpus, Passage
from stages.generate.search.index import SearchIndex
from stages.generate.tools.tool import Tool

FIRST_PAUSE_SECONDS = 0.5  # before the second attempt; twice that before the third, and so on
_PARAMETERS = {
    "type": "object",
    "properties": {"query": {"type": "string", "description": "what to look for, in a few words"}},
    "required": ["query"],
    "additionalProperties": False,
}

Search = Callable[[str], Awaitable[Sequence[Passage]]]


def search_tool(
    where: str | Path,
    *,
    topk: int = 3,
    name: str = "search",
    description: str = "Searches a collection of texts for the passages that fit a query best.",
    timeout_seconds: float = 30.0,
    attempts: int = 3,
    max_concurrent: int = 64,
) -> Tool:
    """A tool that finds `topk` passages. Make it once, outside of the generate function.

    `where`: the URL of a server, http://HOST:PORT/retrieve (`python -m pipeline search-server`), or
    a folder, which the first call indexes in this process. A server that does not answer, or with
    a status of 500 and more, is asked again, up to `attempts` times and all within
    `timeout_seconds`, then the call raises GenerateError. `max_concurrent`: requests at once."""
    search: Search
    if str(where).startswith(("http://", "https://")):
        search = _Client(str(where), topk, timeout_seconds, attempts, max_concurrent).search
    else:
        search = _Local(Path(where), topk).search

    async def call(arguments: dict[str, Any]) -> str:
        return as_information(await search(arguments["query"]))

    return Tool(
        name=name,
        description=description,
        parameters=_PARAMETERS,
        call=call,
        timeout_seconds=timeout_seconds,
    )


def as_information(passages: Sequence[Passage]) -> str:
    """In Search-R1's words."""
    if not passages:
        return "Nothing was found."
    contents = (passage["contents"].partition("\n") for passage in passages)
    return "\n".join(
        f"Doc {place} (Title: {title}) {text}".rstrip()
        for place, (title, _, text) in enumerate(contents, start=1)
    )


class _Local:
    """The index of a folder, made by whoever asks first."""

    def __init__(self, folder: Path, topk: int) -> None:
        self._folder, self._topk = folder, topk
        self._index: SearchIndex | None = None
        self._thread = ThreadPoolExecutor(1, "search")  # one search at a time, beside the loop

    async def search(self, query: str) -> Sequence[Passage]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._find, query)

    def _find(self, query: str) -> Sequence[Passage]:
        if self._index is None:
            self._index = SearchIndex(Corpus(self._folder))
        (found,) = self._index.search([query], self._topk)
        return [passage for passage, _ in found]


class _RetryError(Exception):
    """It may go better the next time."""


class _Client:
    def __init__(
        self, url: str, topk: int, timeout_seconds: float, attempts: int, max_concurrent: int
    ) -> None:
        self._url, self._topk = url, topk
        self._timeout_seconds, self._attempts = timeout_seconds, attempts
        self._max_concurrent = max_concurrent
        self._places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            WeakKeyDictionary()
        )

    async def search(self, query: str) -> Sequence[Passage]:
        loop = asyncio.get_running_loop()
        places = self._places.setdefault(loop, asyncio.Semaphore(self._max_concurrent))
        last: Exception | None = None
        try:
            async with asyncio.timeout(self._timeout_seconds), places:
                for attempt in range(self._attempts):
                    if attempt:
                        await asyncio.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
                    try:
                        return await self._ask(query)
                    except (aiohttp.ClientError, OSError, _RetryError) as error:
                        last = error
        except TimeoutError:
            told = f"; the last attempt: {last}" if last else ""
            raise GenerateError(
                f"the search server {self._url} did not answer in {self._timeout_seconds:g} s{told}"
            ) from last
        raise GenerateError(
            f"the search server {self._url} failed {self._attempts} times: {last}"
        ) from last

    async def _ask(self, query: str) -> Sequence[Passage]:
        asked = {"queries": [query], "topk": self._topk, "return_scores": True}
        async with open_http_session() as http, http.post(self._url, json=asked) as answer:
            if answer.status >= 500:
                raise _RetryError(f"status {answer.status}: {(await answer.text())[:200]}")
            if answer.status != 200:
                raise GenerateError(
                    f"the search server {self._url} refused {query[:80]!r}: status"
                    f" {answer.status}: {(await answer.text())[:200]}"
                )
            try:
                (found,) = (await answer.json(content_type=None))["result"]
                passages = [one.get("document", one) for one in found]
                if all(isinstance(passage["contents"], str) for passage in passages):
                    return passages
            except (ValueError, KeyError, TypeError, AttributeError):
                pass
        raise GenerateError(
            f"the search server {self._url} answered in another form than"
            ' {"result": [[{"document": {"contents": "TITLE\\ntext"}, "score": ...}, ...]]}'
        )
