"""An agent that searches, in the shape of Search-R1: the model writes `<search>QUERY</search>`,
reads `<information>...</information>`, and ends with `<answer>...</answer>`.

    python train_async.py --mock --num-rollout 20 --max-turns 3 --rollout-max-response-len 512 \
        --prompt-data examples/search_agent/questions.jsonl --label-key label \
        --custom-generate-function-path examples/search_agent/agent.py \
        --custom-rm-path examples/search_agent/agent.py

Without SEARCH_URL in the environment it searches the corpus beside this file, in the process of
the run. For a real run put --hf-checkpoint in the place of --mock, and ahead of it
SEARCH_URL=http://HOST:PORT/retrieve: Search-R1's own server, or this one, over a folder of yours.

    python -m pipeline search-server examples/search_agent/corpus --port 8000
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from slipstream import Sample, Tool, open_session, search_tool

NUM_DOCUMENTS = 2
FORMAT_SCORE = 0.2  # for an answer in its tags that is wrong
UNTAGGED_SCORE = 0.5  # for the right words outside of them

_ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)


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
            query = text if action == "search" else question_of(sample)
            found = await search().call({"query": query})  # what it cannot do fails this rollout
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


@cache
def search() -> Tool:
    return search_tool(
        os.environ.get("SEARCH_URL") or Path(__file__).with_name("corpus"), topk=NUM_DOCUMENTS
    )


def normalised(text: str) -> str:
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))
