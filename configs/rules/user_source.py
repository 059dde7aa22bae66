"""What the file of a user's function says, as text."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import ConfigError
from pipeline.core.userfn import check_function


def source_text(spec: str) -> str:
    """Of `file.py[:name]` or `module.name`; nothing where there is no source to read, of which
    other rules tell."""
    place = Path(spec.partition(".py")[0] + ".py").expanduser()
    if not place.is_file():
        try:
            source = check_function(spec)
        except ConfigError:
            return ""
        if source is None:
            return ""
        place = source.file
    return place.read_text(encoding="utf-8", errors="replace")
