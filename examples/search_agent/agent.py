"""An agent that searches, in the shape of Search-R1: the model writes `<search>QUERY</search>`,
reads `<information>...</information>`, and ends with `<answer>...</answer>`.

    python train_async.py --mock --num-rollout 20 --max-turns 3 --rollout-max-response-len 512 \
        --prompt-data examples/search_agent/questions.jsonl --label-key label \
        --custom-generate-function-path examples/search_agent/agent.py \
        --custom-rm-path examples/search_agent/agent.py

Without SEARCH_URL in the environment it asks the small server beside this file, in a thread of the
run. For a real run put --hf-checkpoint in the place of --mock, and SEARCH_URL=http://HOST:PORT/retrieve
ahead of it."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import aiohttp

from slipstream import Sample, open_session

from .search_server import serve_beside

NUM_DOCUMENTS = 2
MAX_SEARCHES = 64  # at a time
SEARCH_SECONDS = 30.0
FORMAT_SCORE = 0.2  # for an answer in its tags that is wrong
UNTAGGED_SCORE = 0.5  # for the right words outside of them

_ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
_searches = asyncio.Semaphore(MAX_SEARCHES)


async def generate(args: Any, sample: Sample, sampling_params: Mapping[str, Any]) -> Sample:
    """Turns of the model and of the search server, until there is an answer or no room is left."""
    stop = [*sampling_params.get("stop", ()), "</search>", "</answer>"]
    searches = 0
    async with open_session(args, sample, sampling_params) as session:
        while not session.done:
            turn = await session.generate(stop=stop)
            action, text = action_of(turn.text)
            if action == "answer":
                break
            hint = "" if action == "search" else "A query or an answer belongs in its tags. "
            found = await search(text if action == "search" else question_of(sample))
            searches += session.append_tool(f"\n{hint}<information>{found}</information>\n")
    sample.metadata["num_searches"] = searches
    return sample


async def reward_func(args: Any, sample: Sample, **_: Any) -> float:
    """1 for the answer, as it is or but for case, punctuation and articles."""
    action, said = action_of(sample.response)
    wanted = normalised(str(sample.label))
    if action == "answer":
        return 1.0 if normalised(said) == wanted else FORMAT_SCORE
    # what the search server said is not the model's merit
    own = re.sub(r"<information>.*?</information>", " ", sample.response, flags=re.DOTALL)
    return UNTAGGED_SCORE if f" {wanted} " in f" {normalised(own)} " else 0.0


def action_of(text: str) -> tuple[str | None, str]:
    """The last thing that the model asks for, and of what."""
    found = _ACTION.findall(text)
    action, inner = found[-1] if found else (None, "")
    return action, inner.strip()


def question_of(sample: Sample) -> str:
    """Behind the instructions."""
    return str(sample.prompt).rpartition("Question:")[2].strip()


async def search(query: str) -> str:
    """The documents found, as text. What the server cannot do is an error of this rollout."""
    asked = {"queries": [query], "topk": NUM_DOCUMENTS, "return_scores": True}
    timeout = aiohttp.ClientTimeout(total=SEARCH_SECONDS)
    async with (
        _searches,
        aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as http,
        http.post(search_url(), json=asked) as answer,
    ):
        found = (await answer.json())["result"][0]
    contents = [one["document"]["contents"].partition("\n") for one in found]
    return "".join(
        f"Doc {place} (Title: {title}) {text}\n"
        for place, (title, _, text) in enumerate(contents, start=1)
    ).strip()


@cache
def search_url() -> str:
    return os.environ.get("SEARCH_URL") or serve_beside()


def normalised(text: str) -> str:
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))
