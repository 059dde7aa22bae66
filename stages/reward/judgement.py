"""Judges what a reward function returned: it must be a finite number, or a dict that has one to
train on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from pipeline.core.errors import RewardError


def judged(reward: Any, *, key: str | None, threshold: float) -> float | dict[str, Any]:
    """The reward as it is kept: a float, or a dict whose numbers are floats. `key` (by default
    "score") names the entry of a dict that is trained on. Only that entry is compared with
    `threshold`, below which a score counts as 0. Raises RewardError for anything else."""
    if not isinstance(reward, Mapping):
        return _above(_finite("the reward is", reward), threshold)
    key = key or "score"
    if key not in reward:
        raise RewardError(
            f"the reward has no {key!r}, only {', '.join(map(repr, reward))}: set --reward-key"
            " to the entry to train on"
        )
    kept = {str(name): _entry(str(name), value) for name, value in reward.items()}
    kept[key] = _above(_finite(f"the reward's {key!r} is", reward[key]), threshold)
    return kept


def check_sayable(result: Any) -> None:
    """What a function returned, for a sample or a group: raises RewardError, as `judged` does, for
    what no key and no threshold would make a reward of."""
    for reward in result if isinstance(result, list | tuple) else [result]:
        if not isinstance(reward, Mapping):
            _finite("the reward is", reward)
            continue
        for name, value in reward.items():
            _entry(str(name), value)


def plain(value: Any) -> Any:
    """The value with numpy's and torch's scalars as Python's, in dicts and lists too; everything
    else stays as it is."""
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    """The number in an array or tensor that holds one; anything else as it is."""
    item = getattr(value, "item", None)
    if not callable(item):
        return value
    try:
        return item()
    except (TypeError, ValueError, RuntimeError):  # it holds more than one, or is something else
        return value


def _finite(what: str, value: Any) -> float:
    number = _scalar(value)
    if not isinstance(number, Real) or not math.isfinite(number):
        raise RewardError(f"{what} {value!r:.80}: expected a finite number, or a dict of them")
    return float(number)


def _entry(name: str, value: Any) -> Any:
    """An entry beside the one that is trained on: a number, or anything that JSON can express."""
    number = _scalar(value)
    if isinstance(number, Real):
        return _finite(f"the reward's {name!r} is", number)
    try:
        json.dumps(number)
    except (TypeError, ValueError, RecursionError) as error:
        raise RewardError(
            f"the reward's {name!r} is {value!r:.80}: expected a number, or what JSON can say"
        ) from error
    return number


def _above(number: float, threshold: float) -> float:
    return number if number >= threshold or number < 0 else 0.0
