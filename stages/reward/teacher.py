"""On-policy distillation: a teacher's log-probs of what the policy sampled, beside the reward."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp

from pipeline.core.errors import RewardError
from pipeline.core.protocols import Reward
from pipeline.core.types import Sample, Status

ATTEMPTS, BACKOFF_SECONDS = 3, 0.5

Lease = Callable[[], AbstractAsyncContextManager[str]]


class TeacherStage:
    """Implements `Reward` around another one: scores, and fills `teacher_log_probs` [R] of every
    sample that did not fail.

    The teacher is an SGLang server that is asked to read prompt and response (`max_new_tokens` 0):
    its log-probs are of softmax(logits), temperature 1, of the same token ids, so teacher and
    policy must share a vocabulary."""

    def __init__(
        self,
        inner: Reward,
        lease: Lease,
        *,
        scored: bool,
        timeout_seconds: float,
        headers: Mapping[str, str] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`lease`: the teacher's base URL, held for one request. `headers`: of every request to it.

        With `scored` False there is no scorer, and every reward is 0."""
        self._inner, self._lease, self._scored = inner, lease, scored
        self._timeout, self._sleep = aiohttp.ClientTimeout(total=timeout_seconds), sleep
        self._headers = headers
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, samples: Sequence[Sample]) -> None:
        if not self._scored:
            for sample in samples:
                sample.reward = (
                    0.0
                    if sample.reward is None and sample.status is not Status.FAILED
                    else sample.reward
                )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._inner_scores(samples))
            for sample in samples:
                if sample.status is not Status.FAILED and sample.teacher_log_probs is None:
                    group.create_task(self._ask(sample))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _inner_scores(self, samples: Sequence[Sample]) -> None:
        if self._scored:
            await self._inner(samples)

    async def _ask(self, sample: Sample) -> None:
        tokens = [int(t) for t in sample.tokens]
        for attempt in range(1, ATTEMPTS + 1):
            try:
                sample.teacher_log_probs = await self._log_probs(tokens, sample.response_length)
                return
            except (aiohttp.ClientError, TimeoutError, RewardError) as error:
                if attempt == ATTEMPTS:
                    sample.status, sample.reward = Status.FAILED, None
                    sample.error = (
                        f"{type(error).__name__}: the teacher's log-probs could not be had"
                        f" ({error})"
                    )
                    return
                await self._sleep(BACKOFF_SECONDS * attempt)

    async def _log_probs(self, tokens: list[int], num: int) -> list[float]:
        """The log-probs of the last `num` tokens. Raises RewardError for an answer that does not
        fit."""
        if num == 0:
            return []
        start = len(tokens) - num
        payload = {
            "input_ids": tokens,
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            # the first entry that SGLang returns has no log-prob
            "logprob_start_len": max(start - 1, 0),
        }
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, headers=self._headers)
        async with (
            self._lease() as url,
            self._session.post(f"{url}/generate", json=payload) as response,
        ):
            if response.status != 200:
                raise RewardError(
                    f"{url} answered {response.status}: {(await response.text())[:200]}"
                )
            answer = await response.json()
        return _last(answer, tokens[start:])


def _last(answer: Any, wanted: list[int]) -> list[float]:
    entries = (
        (answer.get("meta_info") or {}).get("input_token_logprobs")
        if isinstance(answer, dict)
        else None
    )
    found = (entries or [])[-len(wanted) :]
    # SGLang writes 0 for the vocabulary's last id (it may be an image's placeholder there); the
    # log-prob beside it is right.
    ids_fit = len(found) == len(wanted) and all(
        entry[1] in (token, 0) for entry, token in zip(found, wanted, strict=True)
    )
    if not ids_fit or any(entry[0] is None for entry in found):
        raise RewardError(
            f"the teacher was asked for log-probs of the {len(wanted)} tokens {str(wanted)[:80]},"
            f" and answered {str(found)[:80]}: is it an SGLang server with the policy's vocabulary?"
        )
    return [float(entry[0]) for entry in found]
