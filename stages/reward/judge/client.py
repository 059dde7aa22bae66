"""The judge: asked, read, remembered."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

from configs.rules.judge import why_no_judge
from configs.schema.reward import RewardConfig
from pipeline.core.errors import RewardError
from pipeline.core.tally import Tally
from pipeline.core.types import Sample
from stages.reward.asking import Asker, Sleep
from stages.reward.judge.cache import FILE_NAME, JudgementCache, digest
from stages.reward.judge.question import DEFAULT, question
from stages.reward.judge.reading import read_score

logger = logging.getLogger(__name__)
READINGS = 3  # a reply without a score is asked for again, so many times in all


class Judge:
    """`await judge(sample)`: its reward, from a model behind /chat/completions (Zheng et al. 2023,
    arXiv 2306.05685). The same question is asked once.

    Raises RewardError where there is no judgement: a judge that is down, refuses, or says nothing
    that can be read has judged nothing, and the sample has failed."""

    def __init__(
        self, config: RewardConfig, cache: JudgementCache, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        """Of a configuration that `why_no_judge` finds nothing wrong with."""
        assert config.judge_url is not None
        key = os.environ[config.judge_api_key_env] if config.judge_api_key_env else None
        self._asker = Asker(
            "--judge-url",
            config.judge_url.rstrip("/") + "/chat/completions",
            config.reward_timeout_seconds,
            connections=config.judge_concurrency,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            sleep=sleep,
        )
        self._fixed = {**json.loads(config.judge_sampling_params), "model": config.judge_model}
        path, pattern = config.judge_prompt_path, config.judge_score_pattern
        self._template = Path(path).read_text(encoding="utf-8") if path else DEFAULT
        self._pattern = re.compile(pattern) if pattern else None
        self._key = config.reward_key or "score"
        # what makes the same reply another reward
        self._reading = [pattern, None if pattern else self._key]
        self._cache = cache
        # held by whoever asks or waits for the same question
        self._under_way: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._failed = Tally(logger, "sample", "not judged, and failed")

    async def __call__(self, sample: Sample) -> Any:
        body = self._body(question(self._template, sample))
        key = digest({**body, "reading": self._reading})
        async with self._under_way.setdefault(key, asyncio.Lock()):
            known = await self._cache.get(key)
            if known is not None:
                return known
            try:
                reward = await self._judge(body)
            except RewardError as error:
                self._failed.add(f"sample {sample.index}: {error}")
                self._failed.say()
                raise
            await self._cache.put(key, reward)
            return reward

    async def close(self) -> None:
        await self._asker.close()

    def _body(self, text: str) -> dict[str, Any]:
        return {**self._fixed, "messages": [{"role": "user", "content": text}]}

    async def _judge(self, body: dict[str, Any]) -> Any:
        for reading in range(READINGS):
            reply = _content(await self._asker.ask(body))
            try:
                return read_score(reply, self._pattern, self._key)
            except ValueError as error:
                if reading + 1 == READINGS:
                    raise RewardError(
                        f"the judge gave no score in {READINGS} replies ({error}), the last ends"
                        f" with {reply[-80:]!r}"
                    ) from error
        raise AssertionError("the last reading returns or raises")


def _content(answer: Any) -> str:
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise RewardError(
            f"the judge answered {answer!r:.80}: expected OpenAI's chat completions, with"
            " choices[0].message.content. Is --judge-url the base, http://HOST:PORT/v1?"
        ) from error
    return content if isinstance(content, str) else ""


def build_judge(
    config: RewardConfig, args: SimpleNamespace, *, sleep: Sleep = asyncio.sleep
) -> Judge:
    """Raises RewardError where the flags name no judge. Judgements are kept in the run's folder
    where `args` says which that is."""
    if why := why_no_judge(config):
        raise RewardError(f"rm_type judge: {why}")
    folder = getattr(args, "run_dir", None)
    file = Path(folder) / FILE_NAME if folder else None
    return Judge(config, JudgementCache(file, config.judge_cache_size), sleep=sleep)
