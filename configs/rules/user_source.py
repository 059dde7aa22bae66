"""What the file of a user's function says, as text."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import ConfigError
from pipeline.core.userfn import check_function


def source_text(spec: str) -> str:
    """Of `file.py[:name]` or `module.name`; nothing where there is no source to read, of which
    other rules tell."""
    try:
        file = _file(spec)
    except (ConfigError, RuntimeError):  # the latter: of an unknown user's home
        return ""
    return "" if file is None else file.read_text(encoding="utf-8", errors="replace")


def _file(spec: str) -> Path | None:
    place, is_file, _ = spec.partition(".py")
    named = Path(place + ".py").expanduser() if is_file else None
    if named is not None and named.is_file():
        return named
    source = check_function(spec)
    return None if source is None else source.file
