"""docs/slime-flags.md, made from the tables: python -m configs.command_line.spellings.page"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from configs.command_line.spellings.entries import Absent, Nothing, Ours, Spelling
from configs.command_line.spellings.reading import TABLES

_HEAD = """# Flags of slime, SGLang and Megatron-LM that are none here

Made from the tables in `configs/command_line/spellings/` by `python -m
configs.command_line.spellings.page`. Flags of these projects that are not on this page are flags
here, under the same names: `--help`, `--help-sglang`, `--help-megatron`. A `*` stands for any end
of a name.

- Another name: what is given is read as the flag beside it, and the start of the run says so.
- Nothing to do: it is accepted, and the start of the run lists it.
- Not there: it is refused, with these words.

A flag counts once: two different values of one flag on a command line, or in one preset, are
refused, equal ones are taken. Two kinds are otherwise: `--eval-prompt-data` adds up, and of
Megatron's flags the last counts and is named at the start, for launch scripts override the
arguments of their model's script so. The command line wins over presets, a later preset over an
earlier one.
"""
_CHAPTERS = {
    Ours: ("Another name", "is here"),
    Nothing: ("Nothing to do", "because"),
    Absent: ("Not there", "because"),
}


def page() -> str:
    parts = [_HEAD]
    for project, table in TABLES.items():
        for kind, (title, column) in _CHAPTERS.items():
            rows = list(_rows({k: v for k, v in table.items() if isinstance(v, kind)}))
            if rows:
                head = f"## {project}: {title[0].lower()}{title[1:]}"
                parts.append("\n".join([head, "", f"| flag | {column} |", "| --- | --- |", *rows]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _rows(table: Mapping[str, Spelling]) -> Iterator[str]:
    """One row an answer, whatever the number of flags that get it."""
    for answer, group in groupby(table.items(), key=lambda item: _answer(item[1])):
        names = ", ".join(f"`--{name}`" for name, _ in group)
        yield f"| {names} | {answer.replace('|', chr(92) + '|')} |"


def _answer(spelling: Spelling) -> str:
    if isinstance(spelling, Ours):
        value = f" ({spelling.said})" if spelling.said else ""
        return f"`--{spelling.to}`{value}{', unless it is given' if spelling.is_default else ''}"
    if isinstance(spelling, Nothing) and spelling.only:
        only = " or ".join(f"`{value}`" for value in spelling.only)
        return f"with {only}: {spelling.why}. Otherwise refused: {spelling.otherwise}"
    return spelling.why


if __name__ == "__main__":
    print(page(), end="")
