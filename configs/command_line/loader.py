"""From a command line to a checked Config.

The parser is our own rather than tyro's or argparse's: it must know where every flag was written
(command line, or file and line of a preset), suggest over a thousand names of three families
without importing any of them, and answer in a blink."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from configs.command_line.consequences import draw_consequences
from configs.command_line.custom_config import CustomSetting, custom_settings
from configs.command_line.families import PREFIXES, FlagFamily
from configs.command_line.preset_files import (
    GivenFlag,
    begins_anew,
    expand,
    preset_files,
    split_words,
)
from configs.command_line.slime_defaults import differing_defaults, imports_slime
from configs.command_line.spellings.reading import Reading, spelling_of
from configs.flags import ALIASES, NEGATIVES, own_flags, parse_value, section_classes
from configs.rules.epochs import with_epochs
from configs.rules.validate import validate
from configs.schema import Config
from pipeline.core.errors import ConfigError


def load_config(argv: Sequence[str], families: Iterable[FlagFamily] = ()) -> Config:
    """Parse, merge presets (the command line wins) and check everything that can be known before
    anything starts.

    Raises ConfigError with the flag, its value and the fix.
    """
    families = tuple(families)
    config, origins = parse_config(argv, families)
    try:
        validate(config)
        if config.run.num_epoch is not None:
            config = with_epochs(config)
            validate(config)  # some rules look at how long the run is
        for family in families:
            for problem in family.problems(config):
                raise ConfigError(problem)
    except ConfigError as error:
        raise ConfigError(f"{error}{_origins_of(str(error), origins)}") from error
    return config


def parse_config(
    argv: Sequence[str], families: Iterable[FlagFamily] = ()
) -> tuple[Config, Mapping[str, str]]:
    """`load_config` without the checks across fields; also flag name -> where a preset set it."""
    words = split_words(argv)
    values = _Values()
    reading = Reading()
    families = tuple(families)
    flags = expand(words)
    if begins_anew(flags):
        flags = [given for given in flags if not reading.begins_anew(given)]
    for given in flags:
        for setting in _settings(given, families, reading):
            values.set(*setting, given, reading)
    custom = {}
    for own in custom_settings(flags):
        if not _means_a_flag(own, families, values, reading):
            custom[own.key] = own.value
    for given in reading.defaults:
        found = _find(given, families, [])
        assert found is not None, f"the table of spellings names {given}"
        values.set_default(*found, given)
    config = dataclasses.replace(_config(values, words, reading), custom=custom)
    return config, values.origins


def _means_a_flag(
    own: CustomSetting, families: Sequence[FlagFamily], values: _Values, reading: Reading
) -> bool:
    """Is this setting of a user's file a flag's? Then it is set. Raises ConfigError where the
    command line says otherwise."""
    given = own.as_flag
    if _find(given, families, []) is None and spelling_of(given, with_value=False) is None:
        return False
    settings = list(_settings(given, families, reading))
    for section, field, value in settings:
        before = values.on_command_line(section, field)
        if before is not None and values.sections[section][field] != value:
            raise ConfigError(
                f"{own.key} {own.value!r} ({own.origin}) is the flag {given}, and the"
                f" command line says {before}: keep one of them"
            )
        values.set(section, field, value, given, reading)
    return bool(settings)


class _Values:
    """What the flags of a command line and its presets say, and where each was said."""

    def __init__(self) -> None:
        self.sections: dict[str, dict[str, Any]] = {
            section: {} for section in (*section_classes(), *PREFIXES)
        }
        self.origins: dict[str, str] = {}  # flag name -> where a preset set it
        self._last: dict[str, GivenFlag] = {}  # flag name -> how it was said last

    @property
    def given(self) -> Mapping[str, GivenFlag]:
        """All flags that were said, in the order in which they were said last."""
        return self._last

    def set(self, section: str, field: str, value: Any, given: GivenFlag, reading: Reading) -> None:
        """A preset's value is replaced. Within one preset, or the command line, two different
        values are a mistake, but for Megatron's flags: launch scripts override those of their
        model so, and that is said.

        Raises ConfigError."""
        known, name = self.sections[section], _flag_name(section, field)
        before = self._last.get(name)
        if before is not None and before.source == given.source:
            if _adds_up(name):
                value = known[field] + value
            elif known[field] != value and section == "megatron":
                reading.overridden[str(before)] = str(given)
            elif known[field] != value:
                raise ConfigError(
                    f"{before} and {given}: a flag counts once, drop one{given.place}"
                )
        self._set(section, field, value, given)

    def on_command_line(self, section: str, field: str) -> GivenFlag | None:
        """How the command line itself said it last."""
        given = self._last.get(_flag_name(section, field))
        return given if given is not None and given.origin is None else None

    def set_default(self, section: str, field: str, value: Any, given: GivenFlag) -> None:
        """What gives way to whatever was said."""
        if _flag_name(section, field) not in self._last:
            self._set(section, field, value, given)

    def _set(self, section: str, field: str, value: Any, given: GivenFlag) -> None:
        name = _flag_name(section, field)
        self.sections[section][field] = value
        self._last.pop(name, None)
        self._last[name] = given
        self.origins.pop(name, None)
        if given.origin:
            self.origins[name] = given.origin


def _flag_name(section: str, field: str) -> str:
    return PREFIXES.get(section, "") + field.replace("_", "-")


def _config(values: _Values, words: Sequence[GivenFlag], reading: Reading) -> Config:
    parts: dict[str, Any] = {
        section: cls(**values.sections[section]) for section, cls in section_classes().items()
    }
    parts.update((section, values.sections[section]) for section in PREFIXES)
    config = draw_consequences(Config(**parts), values.given, reading)
    notes = [*reading.notes()]
    if reading.is_slimes or imports_slime(config):
        notes += differing_defaults(config, values.given)
    config = dataclasses.replace(config, notes=tuple(notes))
    # config.yaml: what a run left, not a name
    presets = [p.stem for p in preset_files(words) if p.stem != "config"]
    if config.run.name is None and presets and config.run.load is None:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, name=presets[-1]))
    return config


def _adds_up(name: str) -> bool:
    """Does every mention of the flag count? Within one preset, or the command line: that it wins
    over a preset holds here too."""
    flag = own_flags().get(name)
    return flag is not None and flag.repeats


def _settings(
    given: GivenFlag, families: Sequence[FlagFamily], reading: Reading
) -> Iterator[tuple[str, str, Any]]:
    """(section, field, value) of what one flag says here; nothing, where it asks for nothing."""
    unlisted: list[str] = []
    spelling = spelling_of(given, with_value=True)
    if spelling is None:
        found = _find(given, families, unlisted)
        if found is not None:
            yield found
            return
        spelling = spelling_of(given, with_value=False)
    if spelling is None:
        raise ConfigError(
            f"unknown flag --{given.name}{given.place}{_suggest(given.name, families, unlisted)}"
        )
    meant = reading.take(given, spelling)
    if meant is not None:
        try:
            found = _find(meant, families, unlisted)
        except ConfigError as error:
            raise ConfigError(f"{given}, here {error}") from error
        if found is None:
            raise ConfigError(f"{given}, here {meant}: unknown{_because(unlisted)}")
        yield found


def _find(
    given: GivenFlag, families: Sequence[FlagFamily], unlisted: list[str]
) -> tuple[str, str, Any] | None:
    """(section, field, value) of one flag; ours first, then each family's whose prefix fits. None
    for what nobody knows; `unlisted` takes why a family could not be asked."""
    flags = own_flags()
    name = ALIASES.get(given.name, given.name)
    off = NEGATIVES.get(name) or name.removeprefix("no-")
    try:
        if name in flags:
            return flags[name].section, flags[name].field, parse_value(flags[name], given.values)
        if off != name and off in flags and flags[off].kind is bool:
            if given.values:
                raise ValueError("is a switch: expected no value")
            return flags[off].section, flags[off].field, False
        for family in sorted(families, key=lambda f: -len(PREFIXES[f.section])):
            prefix = PREFIXES[family.section]
            bare = given.name.removeprefix(prefix).replace("-", "_")
            if (
                given.name.startswith(prefix)
                and "_" not in given.name
                and bare in _names(family, unlisted)
            ):
                return (family.section, *family.parse(bare, given.values))
    except ValueError as error:
        raise ConfigError(f"{given}: {error}{given.place}") from error
    except ConfigError as error:  # a family that writes its own message
        raise ConfigError(f"{error}{given.place}") from error
    return None


def _names(family: FlagFamily, unlisted: list[str]) -> Iterable[str]:
    try:
        return family.names()
    except ConfigError as error:
        # not installed: this flag is unknown then, and the message says why
        if str(error) not in unlisted:
            unlisted.append(str(error))
        return ()


def _suggest(name: str, families: Sequence[FlagFamily], unlisted: list[str]) -> str:
    flags = own_flags()
    known = {
        "config",
        "help",
        "version",
        *flags,
        *ALIASES,
        *NEGATIVES,
        *(f"no-{n}" for n, flag in flags.items() if flag.kind is bool),
    }
    for family in families:
        known.update(
            PREFIXES[family.section] + n.replace("_", "-") for n in _names(family, unlisted)
        )
    name = name.replace("_", "-")
    close = (
        [name]
        if name in known
        else difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.66)
    )
    listing = ", ".join(["--help", *(f"--help-{family.section}" for family in families)])
    said = (
        f"; did you mean {' or '.join('--' + c for c in close)}?"
        if close
        else f"; {listing} list all flags"
    )
    return said + _because(unlisted)


def _because(unlisted: Sequence[str]) -> str:
    """Why families could not be asked."""
    return "".join(f" ({why})" for why in unlisted)


def _origins_of(message: str, origins: Mapping[str, str]) -> str:
    """Where the flags that a message names were set, if a preset did it: the user may not know what
    is in there."""
    named = dict.fromkeys(n for n in re.findall(r"--([a-z0-9-]+)", message) if n in origins)
    return f" ({'; '.join(f'--{n}: {origins[n]}' for n in named)})" if named else ""
