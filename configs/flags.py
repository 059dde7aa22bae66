"""Our own flags, made from the dataclasses of configs/schema: name, type, default and the comment
at the field."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs import schema

# Older and slime's names: other spellings, and switches that turn one of ours off.
ALIASES = {"tis-threshold": "tis-clip"}
NEGATIVES = {
    "disable-grpo-std-normalization": "grpo-std-normalization",
    "disable-rewards-normalization": "rewards-normalization",
}
# intervals of which -1 says never, as in verl and OpenRLHF; here that is 0
NEVER = ("save_interval", "eval_interval", "ref_update_interval")
_WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One field of one section."""

    section: str  # attribute of Config
    field: str
    kind: type  # of one value: bool, int, float or str
    choices: tuple[str, ...]  # allowed words; empty: any
    optional: bool  # may be None, written `none`
    many: bool  # takes one value or more
    repeats: bool  # given again, it adds to what it said before
    secret: bool  # its value is shown nowhere
    default: Any
    help: str

    @property
    def name(self) -> str:
        return self.field.replace("_", "-")

    @property
    def expects(self) -> str:
        one = "one of " + ", ".join(self.choices) if self.choices else _WORDS[self.kind]
        return one + (", one or more" if self.many else "") + (", or none" if self.optional else "")


@functools.cache
def own_flags() -> Mapping[str, Flag]:
    """Every flag of ours by its name, in the schema's order."""
    flags: dict[str, Flag] = {}
    for section, cls in section_classes().items():
        hints, comments = typing.get_type_hints(cls), _comments(cls)
        for field in dataclasses.fields(cls):
            kind, choices, optional, many = _unpack(hints[field.name])
            flag = Flag(
                section=section,
                field=field.name,
                kind=kind,
                choices=choices,
                optional=optional,
                many=many,
                repeats=bool(field.metadata.get("repeats")),
                secret=bool(field.metadata.get("secret")),
                default=field.default,
                help=comments.get(field.name, ""),
            )
            assert flag.name not in flags, f"two fields named {field.name}"
            assert flag.many or not flag.repeats, f"{field.name} repeats but takes one value"
            flags[flag.name] = flag
    return flags


@functools.cache
def section_classes() -> Mapping[str, type]:
    hints = typing.get_type_hints(schema.Config)
    return {section: hints[section] for section in schema.SECTIONS}


def parse_value(flag: Flag, values: Sequence[str]) -> Any:
    """The value of `flag` from its words. Raises ValueError whose text says what was expected."""
    if flag.kind is bool:
        word = values[0].lower() if len(values) == 1 else "" if values else "true"
        if flag.optional and word == "none":
            return None
        if word not in ("true", "false"):
            raise ValueError(
                f"is a switch: expected no value (off: --no-{flag.name}){_hint_of_dash(values)}"
            )
        return word == "true"
    if not values:
        raise ValueError(f"has no value: expected {flag.expects}")
    if flag.many:
        return () if list(values) == [""] else tuple(_parse_one(flag, word) for word in values)
    if len(values) > 1:
        raise ValueError(
            "takes one value, got"
            f" {len(values)}{_hint_of_dash(values) or '; quote a value with spaces'}"
        )
    if flag.optional and values[0].lower() == "none":
        return None
    return _parse_one(flag, values[0])


def words_of(value: Any) -> list[str]:
    """The words after a flag that stand for `value`: what `parse_value`, and a family's parse, read
    back."""
    if isinstance(value, Mapping):
        return [json.dumps(dict(value))]
    if isinstance(value, list | tuple):
        flat = value and not any(isinstance(v, list | tuple | Mapping) for v in value)
        return [word for v in value for word in words_of(v)] if flat else [json.dumps(value)]
    return [
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    ]


def _parse_one(flag: Flag, word: str) -> Any:
    if flag.choices:
        if word not in flag.choices:
            raise ValueError(f"expected {flag.expects}")
        return word
    try:
        value = flag.kind(word)
    except ValueError:
        raise ValueError(f"expected {flag.expects}") from None
    if value == -1 and flag.field in NEVER:
        return 0
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


def _hint_of_dash(values: Sequence[str]) -> str:
    """A hint where one dash stands in the place of two, which makes a flag look like a value."""
    meant = [v for v in values if v.startswith("-") and v.lstrip("-")[:1].isalpha()]
    return (
        f"; {meant[0]} needs two dashes if it is a flag: --{meant[0].lstrip('-')}" if meant else ""
    )


def _unpack(hint: Any) -> tuple[type, tuple[str, ...], bool, bool]:
    """(type of one value, choices, may it be None, may it be several) of a field's type."""
    optional = many = False
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (a for a in typing.get_args(hint) if a is not types.NoneType)
        optional = True
    if typing.get_origin(hint) is tuple:
        hint, many = typing.get_args(hint)[0], True
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    kind = str if choices else hint
    assert kind in _WORDS, f"no flag can be made of {hint}"
    return kind, choices, optional, many


def _comments(cls: type) -> dict[str, str]:
    """Field -> its help: the comment behind the field in the class's source, or the lines of
    comment right above it."""
    source = Path(inspect.getfile(cls)).read_text(encoding="utf-8")
    lines = source.splitlines()
    out = {}
    for node in _body_of(cls.__name__, source):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = lines[(node.end_lineno or 0) - 1].encode()
            behind = last[node.end_col_offset or 0 :].decode().strip()
            comment = behind.removeprefix("#").strip() or _above(lines, node.lineno - 1)
            out[node.target.id] = comment
    return out


def _body_of(name: str, source: str) -> Sequence[ast.stmt]:
    """The statements of the class called `name`."""
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return next(node for node in classes if node.name == name).body


def _above(lines: Sequence[str], row: int) -> str:
    """The comment that ends on the line before `row`, as one line."""
    first = row
    while lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(line.strip().removeprefix("#").strip() for line in lines[first:row])
