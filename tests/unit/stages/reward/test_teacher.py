"""The teacher's log-probs: what is asked, what is kept, what fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from pipeline.core.types import Sample, Status
from stages.reward.teacher import ATTEMPTS, TeacherStage


class Scorer:
    async def __call__(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            sample.reward = 1.0


class Teacher:
    """Says -token / 10 of every token but the first it is asked about, as SGLang does."""

    def __init__(self, answer: Any = None, status: int = 200) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._answer, self._status = answer, status

    async def generate(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.asked.append(asked)
        self.keys.append(request.headers.get("Authorization"))
        tokens = asked["input_ids"][asked["logprob_start_len"] :]
        entries = [[None, tokens[0], None], *[[-t / 10, t, None] for t in tokens[1:]]]
        answer = (
            {"meta_info": {"input_token_logprobs": entries}}
            if self._answer is None
            else self._answer
        )
        return web.json_response(answer, status=self._status)


@asynccontextmanager
async def stage(teacher: Teacher, scored: bool = True) -> AsyncIterator[TeacherStage]:
    app = web.Application()
    app.router.add_post("/generate", teacher.generate)
    server = TestServer(app)
    await server.start_server()

    @asynccontextmanager
    async def lease() -> AsyncIterator[str]:
        yield str(server.make_url("")).rstrip("/")

    async def no_sleep(seconds: float) -> None: ...

    made = TeacherStage(
        Scorer(),
        lease,
        scored=scored,
        timeout_seconds=10.0,
        headers={"Authorization": "Bearer sesame"},
        sleep=no_sleep,
    )
    try:
        yield made
    finally:
        await made.close()
        await server.close()


def sample(**changes: Any) -> Sample:
    return Sample(
        **{
            "index": 0,
            "tokens": [7, 8, 3, 4],
            "response_length": 2,
            "status": Status.COMPLETED,
            **changes,
        }
    )


async def test_the_teacher_is_asked_about_the_response_and_nothing_is_generated() -> None:
    teacher, s = Teacher(), sample()
    async with stage(teacher) as t:
        await t([s])
    assert s.teacher_log_probs == pytest.approx([-0.3, -0.4]) and s.reward == 1.0
    (asked,) = teacher.asked
    assert asked["input_ids"] == [7, 8, 3, 4] and asked["logprob_start_len"] == 1
    assert asked["sampling_params"]["max_new_tokens"] == 0 and asked["return_logprob"] is True
    assert teacher.keys == ["Bearer sesame"]


async def test_without_a_scorer_every_reward_is_zero() -> None:
    s = sample()
    async with stage(Teacher(), scored=False) as t:
        await t([s])
    assert s.reward == 0.0 and s.teacher_log_probs is not None


async def test_failed_and_known_samples_are_not_asked_about() -> None:
    teacher = Teacher()
    async with stage(teacher) as t:
        await t(
            [
                sample(status=Status.FAILED),
                sample(teacher_log_probs=[-1.0, -1.0]),
                sample(response_length=0),
            ]
        )
    assert teacher.asked == []


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (Teacher(status=500), "answered 500"),
        (Teacher(answer={"meta_info": {}}), "log-probs of the 2 tokens [3, 4], and answered []"),
        (
            Teacher(
                answer={"meta_info": {"input_token_logprobs": [[-1.0, 9, None], [-1.0, 4, None]]}}
            ),
            "the policy's vocabulary",
        ),
        (Teacher(answer=[1]), "and answered []"),
    ],
)
async def test_an_answer_of_no_use_fails_the_sample_with_its_reason(
    teacher: Teacher, words: str
) -> None:
    s = sample()
    async with stage(teacher) as t:
        await t([s])
    assert s.status is Status.FAILED and s.reward is None and words in (s.error or "")
    assert len(teacher.asked) == ATTEMPTS
