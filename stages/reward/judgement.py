"""Judges what a reward function returned: it must be a finite number, or a dict that has one to
train on; or what JSON can express, where a function of the user's makes numbers of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from pipeline.core.errors import RewardError

# who reads a reward that has no number
_READER = "--custom-reward-post-process-path"


def judged(reward: Any, *, key: str | None, threshold: float, is_read: bool = False) -> Any:
    """The reward as it is kept: a float, or a dict whose numbers are floats. `key` (by default
    "score") names the entry of a dict that is trained on. Only that entry is compared with
    `threshold`, below which a score counts as 0. Raises RewardError for anything else.

    `is_read`: a function of the user's reads the rewards before they are trained on. Then a dict
    need not have that entry, and a reward may be anything that JSON can express."""
    if type(reward) is float and math.isfinite(reward):  # most are: none of the checks below
        return _above(reward, threshold)
    key = key or "score"
    if not isinstance(reward, Mapping):
        number = _scalar(reward)
        if is_read and reward is not None and not isinstance(number, Real):
            return _sayable("the reward is", plain(reward))
        return _above(_finite("the reward is", number), threshold)
    if key not in reward and not is_read:
        raise RewardError(
            f"the reward has no {key!r}, only {', '.join(map(repr, reward))}: set --reward-key"
            f" to the entry to train on, or {_READER} to a function that makes numbers of it"
        )
    kept = {str(name): _entry(str(name), value) for name, value in reward.items()}
    if key in kept and not (is_read and not isinstance(kept[key], float)):
        kept[key] = _above(_finite(f"the reward's {key!r} is", kept[key]), threshold)
    return kept


def check_sayable(result: Any) -> None:
    """What a function returned, for a sample or a group: raises RewardError, as `judged` does, for
    what nobody can read."""
    for reward in result if isinstance(result, list | tuple) else [result]:
        if isinstance(reward, Mapping):
            for name, value in reward.items():
                _entry(str(name), value)
        elif reward is None or isinstance(number := _scalar(reward), Real):
            _finite("the reward is", reward)
        else:
            _sayable("the reward is", number)


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
        raise RewardError(
            f"{what} {value!r:.80}: expected a finite number, or a dict in which --reward-key names"
            f" one; anything else is for {_READER}"
        )
    return float(number)


def _entry(name: str, value: Any) -> Any:
    """An entry beside the one that is trained on: a number, or anything that JSON can express."""
    number = _scalar(value)
    if isinstance(number, Real):
        return _finite(f"the reward's {name!r} is", number)
    return _sayable(f"the reward's {name!r} is", number)


def _sayable(what: str, value: Any) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise RewardError(
            f"{what} {value!r:.80}: expected a number, or what JSON can say"
        ) from error
    return value


def _above(number: float, threshold: float) -> float:
    return number if number >= threshold or number < 0 else 0.0
