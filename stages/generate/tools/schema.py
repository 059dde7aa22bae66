"""JSON schemas of Python's types, and Python's values of what a model wrote in JSON.

A function says by its annotations what it takes: str, int, float, bool, None, list, tuple[T, ...],
dict[str, T], Literal, Enum, unions, TypedDict, dataclasses, Any, and Annotated[T, "in words"]."""

from __future__ import annotations

import enum
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pipeline.core.errors import ConfigError

Schema = dict[str, Any]

SIMPLE: Mapping[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}
_LISTS = (list, tuple, Sequence)
_DICTS = (dict, Mapping)
EXPECTED = (
    "expected str, int, float, bool, None, list[T], tuple[T, ...], dict[str, T], Literal, Enum, a"
    " union of these, a TypedDict or a dataclass"
)


def schema_of(kind: Any, place: str) -> Schema:
    """The JSON schema of a type. `place`: whose it is, for the message. Raises ConfigError for a
    type that JSON cannot say."""
    kind, words = _unwrapped(kind)
    schema = _bare(kind, place)
    return {**schema, "description": words} if words else schema


def _bare(kind: Any, place: str) -> Schema:
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if kind in (Any, object):
        return {}
    if kind in SIMPLE:
        return {"type": SIMPLE[kind]}
    if origin is Literal:
        return _enumerated(inner, place)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enumerated([member.value for member in kind], place)
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(each, place) for each in inner]}
    if origin in _LISTS and len(inner) < 2 + (inner[-1:] == (...,)):
        return {"type": "array", **({"items": schema_of(inner[0], place)} if inner else {})}
    if origin in _DICTS and (not inner or inner[0] is str):
        values = schema_of(inner[1], place) if inner else {}
        return {"type": "object", **({"additionalProperties": values} if values else {})}
    if _is_record(kind):
        return _record(kind, place)
    raise ConfigError(f"{place} has the type {kind!r}, which no JSON schema says: {EXPECTED}")


def _enumerated(values: Sequence[Any], place: str) -> Schema:
    kinds = {type(value) for value in values}
    if not kinds <= set(SIMPLE):
        raise ConfigError(f"{place} has one of the values {values!r}: {EXPECTED}, of plain values")
    same = {"type": SIMPLE[kinds.pop()]} if len(kinds) == 1 else {}
    return {**same, "enum": list(values)}


def _record(kind: Any, place: str) -> Schema:
    parts, required = _members(kind)
    properties = {name: schema_of(each, f"{place}.{name}") for name, each in parts.items()}
    return object_schema(properties, required)


def object_schema(properties: Mapping[str, Schema], required: Sequence[str]) -> Schema:
    needed = {"required": list(required)} if required else {}
    return {
        "type": "object",
        "properties": dict(properties),
        **needed,
        "additionalProperties": False,
    }


def value_of(kind: Any, value: Any) -> Any:
    """What JSON says, as the type has it: dataclasses, enums, tuples and floats are made. `value`
    is valid under `schema_of(kind)`."""
    kind, _ = _unwrapped(kind)
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if kind is float and isinstance(value, int):
        return float(value)
    if kind is int and isinstance(value, float):
        return int(value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if origin in (Union, types.UnionType):
        return value_of(next((each for each in inner if _fits(each, value)), Any), value)
    if isinstance(value, list) and origin in _LISTS:
        made = [value_of(inner[0] if inner else Any, each) for each in value]
        return tuple(made) if origin is tuple else made
    if isinstance(value, dict) and origin in _DICTS:
        return {k: value_of(inner[1] if inner else Any, each) for k, each in value.items()}
    if isinstance(value, dict) and _is_record(kind):
        parts, _ = _members(kind)
        return kind(**{name: value_of(parts[name], each) for name, each in value.items()})
    return value


def _fits(kind: Any, value: Any) -> bool:
    """Is it this one of a union? Of two that both take objects, the one with these members."""
    kind, _ = _unwrapped(kind)
    origin = get_origin(kind) or kind
    if isinstance(value, dict) and _is_record(kind):
        parts, required = _members(kind)
        return set(required) <= set(value) <= set(parts)
    if origin is Literal:
        return value in get_args(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return any(member.value == value for member in kind)
    if isinstance(value, list | dict):
        return origin in (_LISTS if isinstance(value, list) else _DICTS)
    return bool(type(value) is kind) or (kind is float and type(value) is int)


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and (
        is_dataclass(kind) or (issubclass(kind, dict) and hasattr(kind, "__required_keys__"))
    )


def _members(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """The members of a dataclass or TypedDict, and which of them must be there."""
    known = get_type_hints(kind, include_extras=True)
    if is_dataclass(kind):
        given = [f for f in fields(kind) if f.init]
        needed = [f.name for f in given if f.default is MISSING and f.default_factory is MISSING]
        return {f.name: known[f.name] for f in given}, needed
    # with annotations as text, Python's own __required_keys__ has seen no NotRequired
    said = {name: get_origin(each) for name, each in known.items()}
    return known, [
        name
        for name in known
        if said[name] is Required
        or (name in kind.__required_keys__ and said[name] is not NotRequired)
    ]


def _unwrapped(kind: Any) -> tuple[Any, str]:
    """The type without Annotated, Required and NotRequired, and what Annotated says in words."""
    words = ""
    while get_origin(kind) in (Annotated, Required, NotRequired):
        inner, *more = get_args(kind)
        words = next((each for each in more if isinstance(each, str)), words)
        kind = inner
    return kind, words
