"""Reads a client's JSON: each reader gives a value of the type it promises, or says what was wrong
with which field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stages.gateway.chat import said
from stages.gateway.errors import RequestError


def wrong(where: str, value: object, expected: str) -> RequestError:
    """The error for a field of another type or value than is expected."""
    return RequestError(f"{where} is {said(value)}; expected {expected}", param=where)


def an_object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(where, value, "an object")
    return value


def a_list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong(where, value, "a list")
    return value


def objects(value: object, where: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of a list, each with its place, as `input[3]`."""
    for at, given in enumerate(a_list(value, where)):
        yield an_object(given, f"{where}[{at}]"), f"{where}[{at}]"


def a_string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise wrong(where, value, "a string")
    return value


def a_name(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise wrong(where, value, "a string of at least one character")
    return value


def a_flag(body: Mapping[str, Any], name: str) -> bool:
    """False where it is absent or null."""
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise wrong(name, value, "true or false")
    return bool(value)


def a_count(value: object, where: str) -> int:
    count = whole(value)
    if count is None or count < 1:
        raise wrong(where, value, "a whole number, at least 1")
    return count


def whole(value: object) -> int | None:
    """The whole number that JSON may write as 5 or 5.0; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def one_of(value: object, where: str, choices: Mapping[str, str]) -> str:
    """What a choice stands for."""
    if not isinstance(value, str) or value not in choices:
        raise wrong(where, value, f"one of {', '.join(choices)}")
    return choices[value]


def optional_string(body: Mapping[str, Any], name: str, where: str = "") -> str | None:
    """The string of a field that may be absent or null. `where`: the object that holds it."""
    value = body.get(name)
    return None if value is None else a_string(value, f"{where}.{name}" if where else name)


def refuse(body: Mapping[str, Any], refused: Mapping[str, str]) -> None:
    """Raises RequestError for the first field of `refused` (name to reason) that asks for
    something: one that is absent, null, false or empty asks for nothing."""
    for name, reason in refused.items():
        if body.get(name):
            raise RequestError(f"{name} is not served: {reason}", param=name)
