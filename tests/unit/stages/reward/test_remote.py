"""remote_rm: what is sent, what is taken, what is tried again and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from configs.schema import RewardConfig
from pipeline.core.errors import RewardError
from pipeline.core.types import Sample, Status
from stages.reward import build_reward
from stages.reward.asking import ATTEMPTS
from stages.reward.remote import RemoteReward

SAMPLE = Sample(index=0, prompt="1+2=", response="3", label="3", status=Status.COMPLETED)
Answer = Callable[[int], web.StreamResponse]


class Server:
    """Answers the n-th request with `answer(n)`; keeps what it was sent."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.answer: Answer = lambda n: web.json_response(0.5)
        self.hangs = asyncio.Event()
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(await request.json())
        answer = self.answer(len(self.seen))
        if answer.status == 204:  # this one never comes
            await self.hangs.wait()
        return answer


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_post("/score", made.handle)
    async with TestServer(app) as running:
        made.url = str(running.make_url("/score"))
        yield made
        made.hangs.set()


async def ask(url: str | None, seconds: float = 5.0) -> tuple[Any, list[float]]:
    """The reward, and the pauses before it."""
    pauses: list[float] = []

    async def sleep(how_long: float) -> None:
        pauses.append(how_long)

    remote = RemoteReward(url, seconds, sleep=sleep)
    try:
        return await remote(SAMPLE), pauses
    finally:
        await remote.close()


async def test_prompt_response_and_label_are_sent_and_the_json_is_the_reward(
    server: Server,
) -> None:
    assert await ask(server.url) == (0.5, [])
    assert server.seen == [{"prompt": "1+2=", "response": "3", "label": "3"}]


async def test_a_server_that_is_busy_or_overdue_is_asked_again_with_growing_pauses(
    server: Server,
) -> None:
    statuses = {1: 503, 2: 429, 3: 204}
    server.answer = lambda n: web.json_response(1.0, status=statuses.get(n, 200))
    reward, pauses = await ask(server.url, seconds=0.3)
    assert reward == 1.0
    assert [int(p) for p in pauses] == [1, 2, 4]


async def test_a_refusal_is_not_repeated(server: Server) -> None:
    server.answer = lambda n: web.json_response({}, status=400)
    with pytest.raises(RewardError, match=r"refused: ClientResponseError: 400"):
        await ask(server.url)
    assert len(server.seen) == 1


async def test_a_server_that_stays_down_is_a_failure_and_no_wrong_answer(server: Server) -> None:
    server.answer = lambda n: web.json_response({}, status=500)
    with pytest.raises(RewardError, match=rf"--rm-url {server.url} gave no score in {ATTEMPTS} a"):
        await ask(server.url)
    assert len(server.seen) == ATTEMPTS


async def test_what_is_no_json_is_told(server: Server) -> None:
    server.answer = lambda n: web.Response(text="<html>")
    with pytest.raises(RewardError, match="answered no JSON"):
        await ask(server.url)


async def test_the_stage_asks_it_by_name_and_judges_what_it_says(server: Server) -> None:
    server.answer = lambda n: web.json_response({"score": 2, "why": "short"})
    stage = build_reward(RewardConfig(rm_type="remote_rm", rm_url=server.url), SimpleNamespace())
    sample = Sample(index=0, response="3", label="3", status=Status.COMPLETED)
    await stage([sample])
    await stage.close()
    assert sample.error is None and sample.reward == {"score": 2.0, "why": "short"}
