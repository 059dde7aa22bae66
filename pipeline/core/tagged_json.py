"""Plain JSON and back without losing what JSON does not have: tuples, fractions, and dicts whose
keys are not strings.

Procedural tasks keep their entries so in a sample's metadata; their scorers compare tuples with
tuples and look ints up by int."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

_TUPLE, _DICT, _FRACTION = "__tuple__", "__dict__", "__fraction__"


def to_jsonable(value: Any) -> Any:
    """`value` with tuples and dicts with other keys than strings tagged. Numpy scalars and
    subclasses of str and int become plain.

    Raises TypeError naming the type of anything else."""
    if value is None or isinstance(value, bool):
        return value
    for plain in (str, int, float):
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, list):
        return [to_jsonable(v) for v in value]
    if isinstance(value, tuple):
        return {_TUPLE: [to_jsonable(v) for v in value]}
    if isinstance(value, dict):
        if all(isinstance(k, str) for k in value) and not value.keys() & {_TUPLE, _DICT, _FRACTION}:
            return {str(k): to_jsonable(v) for k, v in value.items()}
        return {_DICT: [[to_jsonable(k), to_jsonable(v)] for k, v in value.items()]}
    if isinstance(value, Fraction):
        return {_FRACTION: str(value)}
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return to_jsonable(value.tolist())
    raise TypeError(f"a {type(value).__name__} cannot be kept as JSON")


def misfit(value: Any, name: str) -> str | None:
    """Which part of `value` to_jsonable refuses: "reward['parts'] is a set"; None where it
    refuses none. `name`: what the value is called."""
    if isinstance(value, dict):
        found = (
            misfit(k, f"a key of {name}") or misfit(v, f"{name}[{k!r:.80}]")
            for k, v in value.items()
        )
        return next(filter(None, found), None)
    if isinstance(value, list | tuple):
        return next(filter(None, (misfit(v, f"{name}[{i}]") for i, v in enumerate(value))), None)
    try:
        to_jsonable(value)
    except TypeError:
        return f"{name} is a {type(value).__name__}"
    return None


def from_jsonable(value: Any) -> Any:
    """The inverse of `to_jsonable`, also after a trip through JSON text."""
    if isinstance(value, list):
        return [from_jsonable(v) for v in value]
    if isinstance(value, dict):
        if value.keys() == {_TUPLE}:
            return tuple(from_jsonable(v) for v in value[_TUPLE])
        if value.keys() == {_DICT}:
            return {from_jsonable(k): from_jsonable(v) for k, v in value[_DICT]}
        if value.keys() == {_FRACTION}:
            return Fraction(value[_FRACTION])
        return {k: from_jsonable(v) for k, v in value.items()}
    return value
