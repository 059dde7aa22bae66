"""rm_type judge at a fake judge's server: what is asked, what is repeated, what is remembered, and
that one which is slow or down fails samples and holds nobody up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from configs.schema import RewardConfig
from pipeline.core.errors import RewardError
from pipeline.core.types import Sample, Status
from stages.reward import RewardStage, build_reward
from stages.reward.asking import ATTEMPTS
from stages.reward.judge import Judge, build_judge
from stages.reward.judge.cache import FILE_NAME
from stages.reward.judge.client import READINGS


def said(text: str) -> web.Response:
    return web.json_response({"choices": [{"message": {"role": "assistant", "content": text}}]})


class JudgeServer:
    """Answers the n-th question with `answer(n)`, once `let_go` is set."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.headers: list[Mapping[str, str]] = []
        self.answer: Callable[[int], web.Response] = lambda n: said('{"score": 0.5}')
        self.let_go, self.asked = asyncio.Event(), asyncio.Event()
        self.wanted = 1  # questions under way at once, at which `asked` is set
        self.let_go.set()
        self.running = self.most_running = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        self.headers.append(request.headers)
        number = len(self.bodies)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        if self.running == self.wanted:
            self.asked.set()
        await self.let_go.wait()
        self.running -= 1
        return self.answer(number)

    def config(self, **more: Any) -> RewardConfig:
        return RewardConfig(rm_type="judge", judge_url=self.url, judge_model="big", **more)


@pytest.fixture
async def server() -> AsyncIterator[JudgeServer]:
    made = JudgeServer()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", made.handle)
    async with TestServer(app) as running:
        made.url = str(running.make_url("/v1"))
        yield made
        made.let_go.set()


def a_sample(response: str = "3", index: int = 0) -> Sample:
    return Sample(index=index, prompt="1+2=", response=response, label="3", status=Status.COMPLETED)


def a_judge(config: RewardConfig, folder: Path | None = None, pauses: Any = None) -> Judge:
    async def sleep(seconds: float) -> None:
        if pauses is not None:
            pauses.append(seconds)

    return build_judge(config, SimpleNamespace(run_dir=folder), sleep=sleep)


async def test_the_question_goes_to_the_model_with_key_and_parameters(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    (tmp_path / "ask.txt").write_text("Is {response} right? Wanted: {label}")
    judge = a_judge(
        server.config(
            judge_api_key_env="MY_KEY",
            judge_prompt_path=str(tmp_path / "ask.txt"),
            judge_sampling_params='{"top_p": 0.5}',
        )
    )
    assert await judge(a_sample()) == {"score": 0.5}
    await judge.close()
    asked = {"role": "user", "content": "Is 3 right? Wanted: 3"}
    assert server.bodies == [{"top_p": 0.5, "model": "big", "messages": [asked]}]
    assert server.headers[0]["Authorization"] == "Bearer secret"


async def test_equal_questions_are_asked_once_at_once_and_after_a_restart(
    server: JudgeServer, tmp_path: Path
) -> None:
    judge = a_judge(server.config(), tmp_path)
    server.let_go.clear()
    tasks = [asyncio.create_task(judge(a_sample())) for _ in range(4)]
    await server.asked.wait()
    server.let_go.set()
    assert await asyncio.gather(*tasks) == [{"score": 0.5}] * 4
    await judge.close()
    again = a_judge(server.config(), tmp_path)
    assert await again(a_sample()) == {"score": 0.5}
    assert len(server.bodies) == 1
    await again(a_sample("4"))
    await again.close()
    assert len(server.bodies) == 2
    other = a_judge(server.config(judge_score_pattern=r"(\d\.\d)"), tmp_path)
    assert await other(a_sample()) == 0.5  # read otherwise, it is another judgement
    await other.close()


async def test_only_so_many_questions_are_under_way(server: JudgeServer) -> None:
    server.let_go.clear()
    server.wanted = 3
    judge = a_judge(server.config(judge_concurrency=2, judge_cache_size=0))
    tasks = [asyncio.create_task(judge(a_sample(str(n)))) for n in range(9)]
    other = a_judge(server.config())  # has a limit of its own, and asks after all of those
    tasks.append(asyncio.create_task(other(a_sample())))
    await server.asked.wait()
    server.let_go.set()
    await asyncio.gather(*tasks)
    await judge.close()
    await other.close()
    assert len(server.bodies) == 10 and server.most_running == 3


async def test_a_busy_judge_is_asked_again_when_it_says(server: JudgeServer) -> None:
    busy = {
        1: web.Response(status=429, headers={"Retry-After": "7"}),
        2: web.Response(status=503),
        3: web.Response(status=429, headers={"Retry-After": "9999"}),
    }
    server.answer = lambda n: busy.get(n) or said('{"score": 1}')
    pauses: list[float] = []
    judge = a_judge(server.config(), pauses=pauses)
    assert await judge(a_sample()) == {"score": 1.0}
    await judge.close()
    assert [int(pause) for pause in pauses] == [7, 2, 30]


async def test_a_reply_without_a_score_is_asked_for_again_and_not_remembered(
    server: JudgeServer, tmp_path: Path
) -> None:
    server.answer = lambda n: said("I cannot say")
    judge = a_judge(server.config(), tmp_path)
    with pytest.raises(RewardError, match=r"no score in 3 replies .*'I cannot say'"):
        await judge(a_sample())
    assert len(server.bodies) == READINGS and not (tmp_path / FILE_NAME).exists()
    server.answer = lambda n: said('{"score": 0}')
    assert await judge(a_sample()) == {"score": 0.0}
    await judge.close()


@pytest.mark.parametrize(
    ("status", "times", "error"),
    [(500, ATTEMPTS, "gave no score in 10 attempts"), (401, 1, "refused: ClientResponseError")],
)
async def test_a_judge_that_is_down_or_refuses_fails_the_sample_and_is_counted(
    server: JudgeServer,
    status: int,
    times: int,
    error: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.answer = lambda n: web.Response(status=status)
    monkeypatch.setattr("stages.reward.asking.BACKOFF_MAX_SECONDS", 0.0)
    monkeypatch.setattr("stages.reward.asking.random.random", lambda: 0.0)
    stage = build_reward(server.config(), SimpleNamespace())
    sample = a_sample()
    await stage([sample])
    await stage.close()
    assert (sample.status, sample.reward) == (Status.FAILED, None)
    assert sample.error is not None and error in sample.error
    assert len(server.bodies) == times
    assert "1 sample not judged, and failed: sample 0" in caplog.text


async def test_what_is_no_chat_completion_is_told(server: JudgeServer) -> None:
    server.answer = lambda n: web.json_response({"detail": "Not Found"})
    judge = a_judge(server.config())
    with pytest.raises(RewardError, match="Is --judge-url the base"):
        await judge(a_sample())
    await judge.close()


async def test_a_judge_that_never_answers_holds_up_neither_others_nor_the_end(
    server: JudgeServer,
) -> None:
    server.let_go.clear()
    stage = build_reward(server.config(), SimpleNamespace())
    waiting = asyncio.create_task(_score(stage, a_sample()))
    await server.asked.wait()
    other = a_sample(index=1)
    other.metadata["rm_type"] = "exact_match"
    await stage([other])  # is scored meanwhile
    assert other.reward == 1.0 and not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await stage.close()


async def _score(stage: RewardStage, sample: Sample) -> None:
    await stage([sample])


async def test_a_row_may_name_the_judge_and_without_flags_it_fails() -> None:
    stage = build_reward(RewardConfig(rm_type="exact_match"), SimpleNamespace())
    sample = a_sample()
    sample.metadata["rm_type"] = "judge"
    await stage([sample])
    await stage.close()
    assert sample.status is Status.FAILED and "--judge-url" in (sample.error or "")
