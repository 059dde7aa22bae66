"""How a command line is read that has flags of other projects in it, and what is said of it when
the run starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from configs.command_line.preset_files import GivenFlag
from configs.command_line.spellings.entries import Absent, Nothing, Ours, Spelling
from configs.command_line.spellings.megatron import MEGATRON_LM
from configs.command_line.spellings.sglang import SGLANG
from configs.command_line.spellings.slime import SLIME
from pipeline.core.errors import ConfigError

TABLES = {"slime": SLIME, "SGLang": SGLANG, "Megatron-LM": MEGATRON_LM}


def spelling_of(given: GivenFlag, *, with_value: bool) -> Spelling | None:
    """What the tables say of this flag: of it with just this value, or of it at all."""
    if with_value:
        return _look_up(" ".join((given.name, *given.values))) if given.values else None
    starts = (k for table in TABLES.values() for k in table if k.endswith("*"))
    prefix = next((k for k in starts if given.name.startswith(k.removesuffix("*"))), "")
    return _look_up(given.name) or _look_up(prefix)


def _look_up(key: str) -> Spelling | None:
    return next((table[key] for table in TABLES.values() if key in table), None)


@dataclass(slots=True, kw_only=True)
class Reading:
    """What became of one command line's flags of other projects."""

    nothing: dict[str, str] = field(default_factory=dict)  # flag as given -> why
    renamed: dict[str, str] = field(default_factory=dict)  # flag as given -> ours
    defaults: list[GivenFlag] = field(default_factory=list)  # where the user says nothing
    overridden: dict[str, str] = field(default_factory=dict)  # flag that was given first -> then
    is_slimes: bool = False  # was one of them slime's?

    def take(self, given: GivenFlag, spelling: Spelling) -> GivenFlag | None:
        """The flag of ours that `given` means; None for none. Raises ConfigError."""
        self.is_slimes = self.is_slimes or any(spelling is known for known in SLIME.values())
        if isinstance(spelling, Absent):
            raise ConfigError(f"{given}: {spelling.why}{given.place}")
        if isinstance(spelling, Nothing):
            if spelling.only and " ".join(given.values) not in spelling.only:
                raise ConfigError(f"{given}: {spelling.otherwise}{given.place}")
            self.nothing[str(given)] = spelling.why
            return None
        return self._ours(given, spelling)

    def begins_anew(self, given: GivenFlag) -> bool:
        """Is it the --load of a run that begins?"""
        if given.name == "load":
            self.nothing[str(given)] = "there is no run yet to go on with, one begins"
        return given.name == "load"

    def _ours(self, given: GivenFlag, spelling: Ours) -> GivenFlag | None:
        try:
            name, *values = spelling.words(given.values)
        except ValueError as error:
            raise ConfigError(f"{given}: expected a number{given.place}") from error
        meant = replace(given, name=name, values=tuple(values))
        self.renamed[str(given)] = str(meant)
        if spelling.is_default:
            self.defaults.append(meant)
            return None
        return meant

    def notes(self) -> Iterator[str]:
        """One line of each kind."""
        if self.nothing:
            said = (f"{flag} ({why})" for flag, why in self.nothing.items())
            yield f"nothing to do for {'; '.join(said)}"
        if self.renamed:
            said = (f"{theirs} is {ours}" for theirs, ours in self.renamed.items())
            yield f"other names here: {'; '.join(said)}"
        if self.overridden:
            said = (f"{then}, not {first}" for first, then in self.overridden.items())
            yield f"given twice, the last counts: {'; '.join(said)}"
