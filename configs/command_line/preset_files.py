"""From a command line, and the presets it names, to a list of flags with their words.

A preset is a YAML list; an item is one flag with its values, quoted as in a shell: `-
--rollout-stop "a b" c`."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs.flags import own_flags
from configs.schema.marks import SECRET_OPTIONS
from pipeline.core.errors import ConfigError
from pipeline.core.find_run import find_run, is_checkpoint
from pipeline.core.own_files import is_bare, locate, locate_preset, places_tried, preset_folder

NOT_RESTORED = ("name", "runs-dir", "load")  # of a run that goes on: it has its folder


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenFlag:
    """One flag as the user wrote it, wherever that was."""

    name: str  # without the dashes in front
    values: tuple[str, ...]
    origin: str | None = None  # "FILE line N"; None: the command line

    def __str__(self) -> str:
        values = (shlex.quote(v) if not v or " " in v else v for v in self.values)
        flag = own_flags().get(self.name)
        option = self.name.removeprefix("sglang-").replace("-", "_")
        secret = (flag and flag.secret) or (option != self.name and option in SECRET_OPTIONS)
        return " ".join(["--" + self.name, *("***" if secret else v for v in values)])

    @property
    def source(self) -> str | None:
        """The preset that the flag was in; None for the command line."""
        return self.origin.rpartition(" line ")[0] if self.origin else None

    @property
    def place(self) -> str:
        """Where the flag was written, for the end of a message."""
        return f" ({self.origin})" if self.origin else ""


def split_words(words: Sequence[str]) -> list[GivenFlag]:
    """Cuts a command line into flags: a word that begins with two dashes is a flag, and the words
    up to the next one are its values.

    `--flag=value` is the same as `--flag value`, and the way to give a value that begins with two
    dashes."""
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if word == "-h":
            found.append(("help", []))
        elif word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            found.append((name, [value] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            raise ConfigError(
                f"{word!r} stands before any flag: expected --flag value ..., e.g. --config"
                " quickstart"
            )
    return [GivenFlag(name=name, values=tuple(values)) for name, values in found]


def expand(given: Sequence[GivenFlag]) -> list[GivenFlag]:
    """Replace every --config by its flags, ahead of all others (the command line wins). Ahead of
    them too stand the flags of the run that --load goes on with.

    Raises ConfigError.
    """
    files = [path for g in given if g.name == "config" for path in _files_of(g)]
    presets = [g for file in files for g in read_preset(locate_preset(file))]
    flags = [*_flags_of_run([*presets, *given]), *presets, *given]
    return [_with_own_files(g) for g in flags if g.name != "config"]


def _with_own_files(given: GivenFlag) -> GivenFlag:
    """Files that come with Slipstream are found from any working folder."""
    return replace(given, values=tuple(map(locate, given.values)))


def _flags_of_run(given: Sequence[GivenFlag]) -> list[GivenFlag]:
    """What the run that --load names was started with; a run's name and place are not among it."""
    loads = [g.values for g in given if g.name == "load"]
    if not loads or len(loads[-1]) != 1 or loads[-1][0].lower() == "none":
        return []
    if begins_anew(given):
        return []
    path = Path(loads[-1][0])
    run = find_run(path)
    if run is None and not is_checkpoint(path):
        what = "neither a run nor a checkpoint is there" if path.is_dir() else "no such folder"
        raise ConfigError(
            f"--load {path}: {what} (working folder: {Path.cwd()}); expected a run directory"
            " (runs/NAME), its checkpoints or one of them"
        )
    if run is None or not (run / "config.yaml").is_file():
        return []
    return [g for g in read_preset(run / "config.yaml") if g.name not in NOT_RESTORED]


def begins_anew(given: Sequence[GivenFlag]) -> bool:
    """Does --load name the folder of --save, with nothing in it yet, or the model itself? So
    scripts are written that are started again and again: they go on with what is there."""
    named = {g.name: Path(g.values[0]) for g in given if len(g.values) == 1}
    folder = named.get("load")
    if folder is None:
        return False
    is_new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    return folder == named.get("hf-checkpoint") or (is_new and folder == named.get("save"))


def preset_files(given: Sequence[GivenFlag]) -> list[Path]:
    """The presets that a command line names, in order."""
    return [locate_preset(value) for g in given if g.name == "config" for value in g.values]


def _files_of(given: GivenFlag) -> tuple[str, ...]:
    if not all(given.values) or not given.values:
        raise ConfigError(
            "--config has no value: expected a YAML file, or a preset of Slipstream's by its"
            " name, e.g. --config quickstart"
        )
    return given.values


def read_preset(path: Path) -> list[GivenFlag]:
    """The flags of one preset, each with file and line as its origin. Raises ConfigError."""
    import yaml  # only runs with a preset pay for it

    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(
            f"--config {path}: {error.strerror or error}{_other_presets(path)}"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--config {path}: not UTF-8 text; expected a YAML list of flags"
        ) from error
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(
            f"--config {path}{line}: not YAML ({error.problem or error.context}); expected a list,"
            " e.g. `- --lr 1e-5`"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not YAML ({error})") from error
    if node is None:
        return []
    if not isinstance(node, yaml.SequenceNode):
        raise ConfigError(
            f"--config {path} line {node.start_mark.line + 1}: expected a list of flags, one an"
            " item: `- --lr 1e-5`"
        )
    return list(_items(path, node))


def _items(path: Path, node: object) -> Iterator[GivenFlag]:
    import yaml

    assert isinstance(node, yaml.SequenceNode)
    for item in node.value:
        origin = f"{path} line {item.start_mark.line + 1}"
        if not isinstance(item, yaml.ScalarNode):
            raise ConfigError(
                f"--config {origin}: expected a flag with its values, e.g. `- --lr 1e-5` (quote an"
                " item that holds ': ')"
            )
        try:
            first, *values = shlex.split(item.value) or [""]
        except ValueError as error:
            raise ConfigError(
                f"--config {origin}: {item.value!r}: {str(error).lower()}; quote the value as in a"
                " shell"
            ) from error
        name, equals, value = first.removeprefix("--").partition("=")
        if not first.startswith("--") or not name:
            raise ConfigError(
                f"--config {origin}: {item.value!r} does not begin with --flag; expected e.g. `-"
                " --lr 1e-5`"
            )
        if name in ("config", "help", "version"):
            raise ConfigError(
                f"--config {origin}: --{name} belongs on the command line, not into a preset"
            )
        yield GivenFlag(name=name, values=(*([value] if equals else []), *values), origin=origin)


def _other_presets(path: Path) -> str:
    """What to take instead of a preset that is not there."""
    if is_bare(str(path)):
        own = sorted(p.stem for p in preset_folder().glob("*.yaml"))
        close = difflib.get_close_matches(str(path), own, n=1)
        hint = f"did you mean {close[0]}?" if close else f"Slipstream's own are {', '.join(own)}"
        return f" ({places_tried(path)}); {hint}"
    folder = Path(locate(str(path.parent)))
    here = sorted(p.name for p in folder.glob("*.yaml")) if folder.is_dir() else []
    return f" ({places_tried(path)})" + (f"; {folder} has {', '.join(here[:8])}" if here else "")
