"""The seam to flags that are not ours: SGLang's (`--sglang-*`) and Megatron's. Who knows them
implements `FlagFamily`.

The loader asks a family only when a flag is not one of ours, so `--help` and most mistakes never
read its sources."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from configs.schema import Config

# Where a family's values land in Config -> what its flags begin with. The resolved configuration is
# written with these.
PREFIXES = {"sglang": "sglang-", "megatron": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyFlag:
    """One flag of a family, as the listing shows it."""

    name: str  # without prefix, with underscores
    expects: str  # its value in words, e.g. "an integer"
    help: str = ""
    default: str | None = None


class FlagFamily(Protocol):
    """One family. Names are without prefix and with underscores.

    `parse` must take back what `configs.flags.words_of` makes of its values: true / false for
    switches, `none` for None, JSON for dicts and nested lists, several words for flat lists."""

    @property
    def section(self) -> str:
        """A key of PREFIXES."""

    @property
    def title(self) -> str:
        """The family's name for people, e.g. SGLang."""

    def names(self) -> Collection[str]:
        """Every name that `parse` takes. Raises ConfigError when the library is not installed."""

    def flags(self) -> Iterable[FamilyFlag]:
        """Every flag, as the listing shows it."""

    def parse(self, name: str, values: Sequence[str]) -> tuple[str, Any]:
        """(field, value) for `--PREFIXname VALUES`.

        Raises ValueError whose text says what was expected.
        """

    def problems(self, config: Config) -> Iterator[str]:
        """What this library would refuse, of a configuration without other faults: found without
        importing it."""
