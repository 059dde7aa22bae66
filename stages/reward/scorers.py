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

from pipeline.core.labels import accepted_answers
from pipeline.core.tagged_json import from_jsonable

Scorer = Callable[[str, Any, Mapping[str, Any]], float]


def exact_match(response: str, label: Any, metadata: Mapping[str, Any]) -> float:
    """1.0 when response and label (one of its answers) are the same text but for white space around
    them, else 0.0.

    No label: ValueError.
    """
    return float(response.strip() in (answer.strip() for answer in accepted_answers(label)))


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
    equal to the label's (to one of its answers), else 0.0. `\\$5` and `$5` are five dollars.

    ValueError where there is no label, or math-verify finds no expression in it: every response
    would look wrong."""
    from math_verify import parse, verify

    # it warns at every call that its own deadline is off
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # The caller has the deadline, on the whole process: math-verify's own would call what it could
    # not read in time wrong without a word, and cannot stop a power tower.
    said = parse(_without_dollars(response), parsing_timeout=None)
    return float(
        any(
            verify(_expressions(answer), said, timeout_seconds=None)
            for answer in accepted_answers(label)
        )
    )


def _expressions(answer: str) -> list[Any]:
    """What math-verify reads in an answer of the label."""
    from math_verify import parse

    plain = _without_dollars(answer)
    if plain.count("$") == 1:  # one alone delimits nothing
        plain = plain.replace("$", "")
    text = plain
    if not any(mark in text for mark in ("$", "\\boxed", "\\(", "\\[")):
        # a bare formula: of bare text math-verify takes the last plain number, 2 of both 2\pi and
        # (1, 2)
        text = f"${text}$"
    found: list[Any] = parse(text, parsing_timeout=None) or parse(plain, parsing_timeout=None)
    if not any(not isinstance(part, str) for part in found):
        raise ValueError(
            f"math-verify finds no expression in the label {answer!r:.80}: is it text? Then use"
            " --rm-type exact_match"
        )
    return found


def _without_dollars(text: str) -> str:
    """Without `\\$`, which math-verify takes for the beginning of a formula."""
    return text.replace("\\$", "")


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


@functools.cache
def _task_scorer(task: str, params: str) -> Callable[..., float]:
    """The scorer of the task with these parameters (JSON): some tasks score by their own
    configuration."""
    import reasoning_gym as rg

    return rg.create_dataset(task, **{**from_jsonable(json.loads(params)), "size": 1}).score_answer
