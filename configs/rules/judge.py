"""Rules about the judge of --rm-type judge."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from configs.schema.reward import RewardConfig

# what a judge's prompt may have in it
PLACEHOLDER = r"\{(prompt|response|answer|label|metadata\.[\w.-]+)\}"


def why_no_judge(reward: RewardConfig) -> str | None:
    """The first thing that --rm-type judge lacks, or cannot use."""
    return next(_problems(reward), None)


def _problems(reward: RewardConfig) -> Iterator[str]:
    if reward.judge_url is None:
        yield "set --judge-url, an OpenAI-compatible server's base URL, http://HOST:PORT/v1"
    elif not reward.judge_url.startswith(("http://", "https://")):
        yield f"--judge-url {reward.judge_url}: expected http://HOST:PORT/v1"
    if reward.judge_model is None:
        yield "set --judge-model, the model's name as its server knows it"
    if reward.judge_prompt_path is not None:
        yield from _prompt(reward.judge_prompt_path)
    if reward.judge_score_pattern is not None:
        yield from _pattern(reward.judge_score_pattern)
    yield from _sampling(reward.judge_sampling_params)
    variable = reward.judge_api_key_env
    if variable is not None and not os.environ.get(variable):
        yield (
            f"--judge-api-key-env {variable}: the environment has no {variable}; export it, or"
            " drop the flag for a server without a key"
        )


def _prompt(path: str) -> Iterator[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        yield f"--judge-prompt-path {path}: {error}; expected a text file"
        return
    if not {"response", "answer"} & set(re.findall(PLACEHOLDER, text)):
        yield (
            f"--judge-prompt-path {path} has neither {{response}} nor {{answer}} in it: the judge"
            " would not see what it judges"
        )


def _pattern(pattern: str) -> Iterator[str]:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        yield f"--judge-score-pattern {pattern}: no regular expression ({error})"
        return
    if groups < 1:
        yield (
            f"--judge-score-pattern {pattern}: expected a group around the number, e.g."
            r" Score: (\d+)"
        )


def _sampling(text: str) -> Iterator[str]:
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if not isinstance(given, dict) or {"model", "messages", "stream", "n"} & set(given):
        yield (
            f"--judge-sampling-params {text}: expected a JSON object of a request's parameters,"
            " without model, messages, stream and n, e.g. '{\"temperature\": 0}'"
        )
