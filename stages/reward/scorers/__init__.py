"""The built-in scorers: plain functions of plain data, so that a worker process can run them.

Each takes (response, label, metadata) and returns a number, or a dict with a `score`. They are
module-level and picklable by name; imports wait until the first call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from configs.rules.rewards import why_missing
from stages.reward.scorers.boxed import boxed
from stages.reward.scorers.choices import gpqa
from stages.reward.scorers.dapo import dapo
from stages.reward.scorers.ifbench import ifbench
from stages.reward.scorers.ifeval import ifeval
from stages.reward.scorers.mathematics import boxed_math, deepscaler, math
from stages.reward.scorers.tasks import reasoning_gym
from stages.reward.scorers.words import exact_match, f1, uniform

Scorer = Callable[[str, Any, Mapping[str, Any]], float | dict[str, Any]]

SCORERS: dict[str, Scorer] = {
    "exact_match": exact_match,
    "reasoning_gym": reasoning_gym,
    "math": math,
    "boxed_math": boxed_math,
    "deepscaler": deepscaler,
    "dapo": dapo,
    "f1": f1,
    "gpqa": gpqa,
    "ifbench": ifbench,
    "ifeval": ifeval,
    "random": uniform,
    "boxed_exact_match": partial(boxed, exact_match),
    "boxed_f1": partial(boxed, f1),
    "boxed_gpqa": partial(boxed, gpqa),
}
# a process switch would cost more than the scoring
CHEAP = frozenset(
    {"exact_match", "random", "dapo", "f1", "gpqa", "boxed_exact_match", "boxed_f1", "boxed_gpqa"}
)


def prepare(name: str) -> None:
    """Import what the scorer needs ahead of its first call, whose deadline that would eat."""
    if name in ("math", "boxed_math", "deepscaler"):
        import math_verify  # noqa: F401
    if name == "reasoning_gym":
        import reasoning_gym  # noqa: F401
    if name == "ifbench" and why_missing(name) is None:  # else the call says what to do
        import evaluation_lib  # noqa: F401
