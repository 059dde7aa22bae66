"""What --help prints: our flags by section, and a listing of each family on request."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence

from configs.command_line.families import PREFIXES, FlagFamily
from configs.flags import ALIASES, NEGATIVES, Flag, own_flags, section_classes, words_of

_LEFT = 34  # columns of the flags
_LONG = 48  # columns of choices that still stand beside the flag
_PATHS = ("_path", "_dir", "_checkpoint", "_data", "save", "load")
_METAVARS = {int: "N", float: "X", str: "TEXT"}


def own_help(prog: str, families: Iterable[FlagFamily]) -> str:
    """The whole page, as wide as the terminal (100 columns at most)."""
    width = _width()
    lines = [f"usage: {prog} [--config FILE|NAME] [--flag value ...]", ""]
    lines += textwrap.wrap(
        "A preset is a YAML list of flags; the command line wins over it. `none` unsets a flag that"
        " may be unset.",
        width,
    )
    lines += _entry(
        "--config FILE|NAME",
        "preset(s) to start from, files or Slipstream's own by name; may be repeated",
        width,
    )
    lines += _entry("-h, --help", "this page", width)
    lines += _entry("--version", "print the version", width)
    for section, cls in section_classes().items():
        lines += ["", *textwrap.wrap(" ".join((cls.__doc__ or section).split()), width)]
        for flag in own_flags().values():
            if flag.section == section:
                lines += _entry(_left(flag), flag.help + _choices(flag) + _default(flag), width)
    families = list(families)
    if families:
        lines += ["", "Other families"]
    for family in families:
        switch = f"--help-{family.section} [WORD ...]"
        lines += _entry(
            switch,
            f"list {family.title}'s flags (--{PREFIXES[family.section]}...), those with every WORD"
            " in them",
            width,
        )
    return "\n".join(lines) + "\n"


def family_help(family: FlagFamily, words: Sequence[str]) -> str:
    """The flags of one family whose name or help contain all of `words`."""
    width, lines = _width(), []
    for flag in family.flags():
        name = PREFIXES[family.section] + flag.name.replace("_", "-")
        if all(w.lower().removeprefix("--") in f"{name} {flag.help}".lower() for w in words):
            default = f" [{flag.default}]" if flag.default is not None else ""
            lines += _entry(
                f"--{name}", f"{flag.expects}{default}{'. ' if flag.help else ''}{flag.help}", width
            )
    if not lines:
        return f"no flag of {family.title} holds {' '.join(words)}\n"
    return f"{family.title}'s flags\n" + "\n".join(lines) + "\n"


def _left(flag: Flag) -> str:
    if flag.kind is bool:
        return f"--{'[no-]' if flag.default else ''}{flag.name}"
    value = ("NAME" if _has_many(flag) else "|".join(flag.choices)) or (
        "PATH" if flag.field.endswith(_PATHS) else _METAVARS[flag.kind]
    )
    return f"--{flag.name} {value}{' ...' if flag.many else ''}"


def _has_many(flag: Flag) -> bool:
    return len("|".join(flag.choices)) > _LONG


def _choices(flag: Flag) -> str:
    """The choices, where they are too many to stand beside the flag."""
    return f": {', '.join(flag.choices)}" if _has_many(flag) else ""


def _default(flag: Flag) -> str:
    """The default, where there is one, and other names of the flag."""
    said = ""
    if flag.kind is bool:
        said = " [on]" if flag.default else ""
    elif flag.default not in (None, ()):
        said = f" [{' '.join(words_of(flag.default))}{_in_bytes(flag)}]"
    others = [a for a, name in ALIASES.items() if name == flag.name and f"--{a}" not in flag.help]
    others += [n for n, name in NEGATIVES.items() if name == flag.name]
    return said + (f" (also: {', '.join('--' + o for o in others)})" if others else "")


def _in_bytes(flag: Flag) -> str:
    big = isinstance(flag.default, int) and flag.default >= 1 << 20
    return f" = {flag.default / (1 << 30):g} GiB" if big else ""


def _entry(left: str, right: str, width: int) -> list[str]:
    body = textwrap.wrap(right, width - _LEFT, break_on_hyphens=False) or [""]
    head = f"  {left}"
    first = [f"{head:<{_LEFT}}{body.pop(0)}"] if len(head) < _LEFT - 1 else [head]
    return [line.rstrip() for line in (*first, *(" " * _LEFT + line for line in body))]


def _width() -> int:
    return max(60, min(100, shutil.get_terminal_size((100, 24)).columns))
