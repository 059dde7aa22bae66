"""The YAML file of --custom-config-path: settings of the user's own functions, by name.

As in slime its values become attributes of `args`, and a name that is a flag, ours or a family's,
means that flag: it goes over presets, and may not contradict the command line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.command_line.preset_files import GivenFlag
from configs.flags import words_of
from configs.schema import LIVE_PARTS
from pipeline.core.errors import ConfigError

FLAG = "custom-config-path"
EXPECTED = "expected a YAML mapping, one setting a line: `my_setting: 3`"
_OF_THE_RUN = (*LIVE_PARTS, "context_length")
_OF_THE_COMMAND_LINE = ("config", "load", "custom_config_path")


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomSetting:
    """One key of the file."""

    key: str
    value: Any
    origin: str  # "FILE line N"

    @property
    def as_flag(self) -> GivenFlag:
        """The flag that the key would be."""
        name = self.key.replace("_", "-")
        return GivenFlag(name=name, values=tuple(words_of(self.value)), origin=self.origin)


def custom_settings(given: list[GivenFlag]) -> Iterator[CustomSetting]:
    """Of the file that is named last. Raises ConfigError with file, line and key."""
    paths = [g.values for g in given if g.name == FLAG]
    if paths and len(paths[-1]) == 1 and paths[-1][0].lower() != "none":
        yield from _read(Path(paths[-1][0]).expanduser())


def _read(path: Path) -> Iterator[CustomSetting]:
    import yaml  # only runs with such a file pay for it

    place = f"--{FLAG} {path}"
    try:
        text = path.read_text(encoding="utf-8")
        node, values = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror or error}; {EXPECTED}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place}: not UTF-8 text; {EXPECTED}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{place}{line}: not YAML ({said}); {EXPECTED}") from error
    if node is None:
        return
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{place}: {type(values).__name__} found; {EXPECTED}")
    for key, _ in node.value:
        origin = f"{path} line {key.start_mark.line + 1}"
        if not str(key.value).isidentifier() or key.value not in values:
            raise ConfigError(f"--{FLAG} {origin}: {key.value!r} is no name as in args.NAME")
        if key.value in _OF_THE_RUN:
            raise ConfigError(f"--{FLAG} {origin}: args.{key.value} is the run's own; rename it")
        if key.value in _OF_THE_COMMAND_LINE:
            raise ConfigError(f"--{FLAG} {origin}: {key.value} belongs on the command line")
        yield CustomSetting(key=key.value, value=values[key.value], origin=origin)
