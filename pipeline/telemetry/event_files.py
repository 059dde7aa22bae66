"""TensorBoard's event files, rewritten when a run goes back to a checkpoint: TensorBoard would show
a step that was taken twice as two points."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_PATTERN = "events.out.tfevents.*"


def keep_only(directory: Path, newest_steps: Mapping[str, int]) -> None:
    """Takes out every event of a tag `KIND/...` beyond that kind's newest step; other kinds stay
    whole. Nothing is written where nothing is to be taken out."""
    files = sorted(directory.glob(_PATTERN))
    if not any(_is_beyond(event, newest_steps) for event in _events(files)):
        return
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    aside = directory.with_name(f".{directory.name}-new")
    shutil.rmtree(aside, ignore_errors=True)
    writer = EventFileWriter(str(aside))
    for event in _events(files):
        if event.HasField("summary") and not _is_beyond(event, newest_steps):
            writer.add_event(event)
    writer.close()
    for new in aside.glob(_PATTERN):
        new.replace(directory / f"{new.name}.kept")
    for file in files:
        file.unlink()
    shutil.rmtree(aside)


def _events(files: list[Path]) -> Iterator[Any]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for file in files:
        yield from LegacyEventFileLoader(str(file)).Load()


def _is_beyond(event: Any, newest_steps: Mapping[str, int]) -> bool:
    kinds = {value.tag.split("/", 1)[0] for value in event.summary.value}
    return any(event.step > newest_steps[kind] for kind in kinds if kind in newest_steps)
