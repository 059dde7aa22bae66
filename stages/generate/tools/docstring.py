"""What a docstring says of a function and of its parameters, in Google's, NumPy's or Sphinx's
form."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import NamedTuple

_GOOGLE = re.compile(r"(?:Args|Arguments|Parameters|Params):\s*$")
# what ends the description and the parameters alike
_SECTION = re.compile(
    r"(?:Args|Arguments|Parameters|Params|Returns?|Yields?|Raises|Examples?|Notes?|Attributes"
    r"|See Also|Warns|References):\s*$"
)
_UNDERLINE = re.compile(r"-{3,}\s*$")
_SPHINX = re.compile(r":(?:param|parameter|arg|argument)\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)$")
_FIELD = re.compile(r":\w+[^:]*:")
_GOOGLE_ITEM = re.compile(r"\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:\s*(.*)$")
_NUMPY_ITEM = re.compile(r"\*{0,2}(\w+(?:\s*,\s*\w+)*)\s*(?::.*)?$")


class Docstring(NamedTuple):
    description: str  # all that comes ahead of the sections
    parameters: dict[str, str]


def parse_docstring(text: str | None) -> Docstring:
    lines = inspect.cleandoc(text or "").splitlines()
    end = next((i for i in range(len(lines)) if _is_section(lines, i)), len(lines))
    found: dict[str, list[str]] = {}
    for i, line in enumerate(lines):
        if _GOOGLE.match(line):
            found |= _indented(lines[i + 1 :], _GOOGLE_ITEM)
        elif line.strip() == "Parameters" and _underlined(lines, i):
            found |= _numpy(lines[i + 2 :])
        elif field := _SPHINX.match(line):
            found[field[1]] = [field[2], *_continued(lines[i + 1 :])]
    return Docstring(
        _joined(lines[:end], "\n"), {name: _joined(said, " ") for name, said in found.items()}
    )


def _is_section(lines: Sequence[str], i: int) -> bool:
    return bool(_SECTION.match(lines[i]) or _FIELD.match(lines[i])) or _underlined(lines, i)


def _underlined(lines: Sequence[str], i: int) -> bool:
    return bool(lines[i].strip()) and i + 1 < len(lines) and bool(_UNDERLINE.match(lines[i + 1]))


def _indented(lines: Sequence[str], item: re.Pattern[str]) -> dict[str, list[str]]:
    """The items of a section whose lines are indented; deeper ones go on with the item before."""
    found: dict[str, list[str]] = {}
    depth, said = 0, None
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip() and not indent:
            break
        depth = depth or indent
        start = item.match(line.strip()) if indent == depth else None
        if start:
            said = found.setdefault(start[1], [start[2]])
        elif said is not None:
            said.append(line.strip())
    return found


def _numpy(lines: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for i, line in enumerate(lines):
        if _is_section(lines, i):
            break
        if line.strip() and line[0] != " ":
            start = _NUMPY_ITEM.match(line)
            names = re.split(r"\s*,\s*", start[1]) if start else []
        else:
            for name in names:
                found.setdefault(name, []).append(line.strip())
    return found


def _continued(lines: Sequence[str]) -> list[str]:
    end = next((i for i, x in enumerate(lines) if not x.strip() or x[0] != " "), len(lines))
    return [line.strip() for line in lines[:end]]


def _joined(lines: Sequence[str], separator: str) -> str:
    return separator.join(line.rstrip() for line in lines).strip()
