"""TensorBoard's event files: what is written into them, and what is taken out when a run goes back
to a checkpoint (TensorBoard would show a step that was taken twice as two points). They are written
with TensorBoard's own writer, which needs neither torch nor TensorFlow."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.histogram import Histogram

_PATTERN = "events.out.tfevents.*"


class EventFile:
    """One more file in a folder of event files."""

    def __init__(self, directory: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(directory))

    def scalar(self, tag: str, value: float, step: int, wall_time: float | None) -> None:
        from tensorboard.plugins.scalar.metadata import create_summary_metadata

        described = create_summary_metadata(display_name="", description="")
        self._add(tag, np.float32(value), described, step, wall_time)

    def histogram(self, tag: str, value: Histogram, step: int, wall_time: float | None) -> None:
        from tensorboard.plugins.histogram.metadata import create_summary_metadata

        edges = value.edges
        rows = np.array([edges[:-1], edges[1:], value.counts], dtype=np.float64).T
        described = create_summary_metadata(display_name="", description="")
        self._add(tag, rows, described, step, wall_time)

    def text(self, tag: str, value: str, step: int, wall_time: float | None) -> None:
        """Writes a text in Markdown."""
        from tensorboard.plugins.text.metadata import create_summary_metadata

        described = create_summary_metadata(display_name="", description="")
        self._add(tag, np.array([value], dtype=np.object_), described, step, wall_time)

    def _add(self, tag: str, data: Any, described: Any, step: int, at: float | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.util.tensor_util import make_tensor_proto

        event = Event(wall_time=time.time() if at is None else at, step=step)
        event.summary.value.add(tag=tag, tensor=make_tensor_proto(data), metadata=described)
        self._writer.add_event(event)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


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
