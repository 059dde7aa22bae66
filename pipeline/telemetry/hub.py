"""One `emit` for every sink: each gets the same dict, and none can stop the run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.protocols import Sink
from pipeline.run.disk_full import is_disk_full
from pipeline.run.metrics import KINDS
from pipeline.run.record_file import jsonable, line_of

logger = logging.getLogger(__name__)
NUMBER_KINDS = frozenset(KINDS) - {"sample"}


class Telemetry:
    """`emit` may be called from any thread; `close` any number of times."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        unix_time: Callable[[], float] = time.time,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._sinks = list(sinks)
        self._unix_time, self._on_close = unix_time, on_close
        # reentrant: a sink that fails is logged, and the log may be shown by a sink
        self._lock = threading.RLock()

    def emit(self, kind: str, **fields: Any) -> None:
        """Gives one record to every sink: `kind`, `time` (unix seconds) and the fields, as strict
        JSON can hold them."""
        assert kind in KINDS, f"kind {kind!r}, expected one of {KINDS}"
        record = jsonable({"kind": kind, "time": round(self._unix_time(), 3), **fields})
        with self._lock:
            for sink in list(self._sinks):
                try:
                    sink.write(record)
                except Exception as e:  # any: a view of the run must not end the run
                    if is_disk_full(e):  # but nothing else can be written then either
                        raise
                    self._disable(sink, e)

    def close(self) -> None:
        with self._lock:
            sinks, self._sinks = self._sinks, []
            for sink in reversed(sinks):
                try:
                    sink.close()
                except Exception as e:
                    logger.warning(
                        "%s did not close: %s: %s", type(sink).__name__, type(e).__name__, e
                    )
            on_close, self._on_close = self._on_close, None
        if on_close:
            on_close()

    def _disable(self, sink: Sink, error: Exception) -> None:
        self._sinks.remove(sink)
        logger.warning(
            "%s is off for the rest of the run, the run goes on: %s: %s",
            type(sink).__name__,
            type(error).__name__,
            error,
        )


class JsonlSink:
    """Appends to metrics.jsonl. A line is handed to the operating system as soon as it is written,
    so that kill -9 loses none. Samples, which are long, go to a file of their own."""

    def __init__(self, path: Path, kinds: Collection[str] = NUMBER_KINDS) -> None:
        self._kinds = kinds
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="utf-8")
        if torn:  # a kill in the middle of a line: the next record must not be glued to it
            self._file.write("\n")

    def write(self, record: Any) -> None:
        if record["kind"] in self._kinds:
            self._file.write(line_of(record))
            self._file.flush()

    def close(self) -> None:
        self._file.close()
