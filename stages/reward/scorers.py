"""The built-in scorers: plain functions of plain data, so that a worker process can run them.

Each takes (response, label, metadata) and returns a float. Module-level and picklable by name;
imports wait until the first call."""

from __future__ import annotations

import functools
import json
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.core.tagged_json import from_jsonable

Scorer = Callable[[str, Any, Mapping[str, Any]], float]


def exact_match(response: str, label: Any, metadata: Mapping[str, Any]) -> float:
    """1.0 when response and label are the same text but for white space around them, else 0.0.

    No label: ValueError.
    """
    _need(label)
    return float(response.strip() == str(label).strip())


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


def math(response: str, label: Any, metadata: Mapping[str, Any]) -> float:
    """1.0 when math-verify finds the response's final answer (\\boxed, or the last expression)
    equal to the label's, else 0.0.

    ValueError where there is no label, or math-verify finds no expression in it: every response
    would look wrong."""
    from math_verify import parse, verify

    _need(label)
    # it warns at every call that its own deadline is off
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    text = str(label)
    if not any(mark in text for mark in ("$", "\\boxed", "\\(", "\\[")):
        # a bare formula: of bare text math-verify takes the last plain number, 2 of both 2\pi and
        # (1, 2)
        text = f"${text}$"
    gold = parse(text, parsing_timeout=None) or parse(str(label), parsing_timeout=None)
    if not any(not isinstance(part, str) for part in gold):
        raise ValueError(
            f"math-verify finds no expression in the label {label!r}: is it text? Then use"
            " --rm-type exact_match"
        )
    # The caller has the deadline, on the whole process; math-verify's own uses signals, which only
    # a main thread takes.
    return float(bool(verify(gold, parse(response, parsing_timeout=None), timeout_seconds=None)))


def uniform(response: str, label: Any, metadata: Mapping[str, Any]) -> float:
    """A random number in [0, 1) that depends on the sample only: for benchmarks and null
    experiments."""
    return random.Random(f"{metadata.get('__index__')}:{response}").random()


SCORERS: dict[str, Scorer] = {
    "exact_match": exact_match,
    "reasoning_gym": reasoning_gym,
    "math": math,
    "random": uniform,
}
CHEAP = frozenset({"exact_match", "random"})  # a process switch would cost more than the scoring


def prepare(name: str) -> None:
    """Import what the scorer needs ahead of its first call, whose deadline that would eat."""
    if name == "math":
        import math_verify  # noqa: F401
    if name == "reasoning_gym":
        import reasoning_gym  # noqa: F401


def _need(label: Any) -> None:
    if label is None or label == "":
        raise ValueError(f"the label is {label!r}: set --label-key to the column with the answers")


@functools.cache
def _task_scorer(task: str, params: str) -> Callable[..., float]:
    """The scorer of the task with these parameters (JSON): some tasks score by their own
    configuration."""
    import reasoning_gym as rg

    return rg.create_dataset(task, **{**from_jsonable(json.loads(params)), "size": 1}).score_answer
