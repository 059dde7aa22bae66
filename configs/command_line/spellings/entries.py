"""The three answers to a flag of another project: it is one of ours, there is nothing to do, or it
is not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """The same thing has another name here."""

    to: str  # a flag without its dashes; with a value behind it, that value is meant
    values: Mapping[str, str] = field(default_factory=dict)  # their word -> ours; others stay
    convert: Callable[[str], str] | None = None  # of the value
    said: str = ""  # what becomes of the value, in words
    is_default: bool = False  # gives way to what the user says of that flag

    def words(self, given: tuple[str, ...]) -> tuple[str, ...]:
        """The flag's name and values, from the values of theirs. Raises ValueError."""
        name, *fixed = self.to.split()
        convert = self.convert or (lambda word: self.values.get(word, word))
        return (name, *(fixed or map(convert, given)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """It is accepted and ignored: what it asks for is so here, or decided by something else."""

    why: str
    only: tuple[str, ...] = ()  # the values that are accepted; empty: any
    otherwise: str = ""  # what is said of others


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """It is refused; `why` ends with the counterpart where there is one."""

    why: str


Spelling = Ours | Nothing | Absent
