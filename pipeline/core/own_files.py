"""The files that come with Slipstream, `configs/...` and `examples/...`, found from any folder.

The working folder comes first: there a file of that name is the user's. In a clone they lie beside
the code; installed, examples/ is in the folder of the package `slipstream`."""

from __future__ import annotations

import re
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]  # the clone, or site-packages
_FOLDERS = {"configs": ("",), "examples": ("", "slipstream")}  # where in it each may lie
# A word of a command line: perhaps a scheme, a path, perhaps a function or a slice.
_WORD = re.compile(r"(?P<scheme>tiny:)?(?P<path>(?:configs|examples)/[^:@?]+)(?P<rest>.*)", re.S)


def locate(word: str) -> str:
    """`word` with the path of our own file in it, where it names one and the working folder has no
    such file; any other word unchanged."""
    match = _WORD.fullmatch(word)
    if match is None or Path(match["path"]).exists():
        return word
    own = next((place for place in _own_places(Path(match["path"])) if place.exists()), None)
    return word if own is None else f"{match['scheme'] or ''}{own}{match['rest']}"


def locate_preset(word: str) -> Path:
    """The file of a preset: a path, or the bare name of one of ours (`quickstart`)."""
    path = Path(word).expanduser()
    if path.is_file():
        return path
    if is_bare(word) and (own := preset_folder() / f"{word}.yaml").is_file():
        return own
    return Path(locate(str(path)))


def is_bare(word: str) -> bool:
    return "/" not in word and not word.endswith((".yaml", ".yml"))


def preset_folder() -> Path:
    return HOME / "configs" / "presets"


def places_tried(path: Path) -> str:
    """Where a file was looked for, for a message that says that it is not there."""
    said = f"working folder: {Path.cwd()}"
    own = [place for place in _own_places(path) if place != Path.cwd() / path]
    return f"{said}; Slipstream's own files: {' and '.join(map(str, own))}" if own else said


def _own_places(path: Path) -> list[Path]:
    """Where a relative path would lie if it were one of ours."""
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return []
    folders = [HOME / inner for inner in _FOLDERS.get(path.parts[0], ())]
    return [folder / path for folder in folders if (folder / path.parts[0]).is_dir()]
