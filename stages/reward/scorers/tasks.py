"""The scorers of reasoning-gym's own tasks."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.core.tagged_json import from_jsonable


def reasoning_gym(response: str, label: Any, metadata: Mapping[str, Any]) -> float:
    """The task's own scorer, on the text between <answer> tags where there are any, else on the
    whole response.

    `metadata["reasoning_gym"]` is {"task": name, "params": {...}, "entry": {"question", "answer",
    "metadata"}}, as the source writes it: tuples and odd keys tagged, which the task's scorer must
    get back as they were."""
    from reasoning_gym.utils import extract_answer

    said = metadata["reasoning_gym"]
    answer = extract_answer(response) or response.strip()
    score = _task_scorer(said["task"], json.dumps(said.get("params", {}), sort_keys=True))
    entry = from_jsonable(said["entry"])
    try:
        return float(score(answer, entry))
    except Exception:
        # some tasks' scorers raise on an answer they cannot read (prime_factorization on any word)
        if entry["answer"] is None:
            raise
        # raises again where the fault is the scorer's or the entry's: that is a failure
        score(entry["answer"], entry)
        return 0.0  # it reads the right answer: what it cannot read is a wrong one


@functools.cache
def _task_scorer(task: str, params: str) -> Callable[..., float]:
    """The scorer of the task with these parameters (JSON): some tasks score by their own
    configuration."""
    import reasoning_gym as rg

    return rg.create_dataset(task, **{**from_jsonable(json.loads(params)), "size": 1}).score_answer
