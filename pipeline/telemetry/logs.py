"""Python logging: everything goes to RUN_DIR/run.log, and what a user should see to the terminal as
well."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Self

OURS = (
    "pipeline",
    "stages",
    "buffers",
    "configs",
    "compat",
    "sandbox",
    "examples",
    "train_async",
    "__main__",
    "slipstream",
)
_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class _Console(logging.Handler):
    """Shows our own lines from `level` on and other libraries' from WARNING on. Python warnings,
    and what is marked file_only, go only to the file (what is marked terminal_only does not)."""

    def __init__(self, write_line: Callable[[str, int], None], level: int) -> None:
        super().__init__(level)
        self._write_line = write_line
        self._local = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "py.warnings" or getattr(record, "file_only", False):
            return False
        return record.levelno >= logging.WARNING or record.name.split(".", 1)[0] in OURS

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(self._local, "inside", False):  # the console itself logged
            return
        self._local.inside = True
        try:
            level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
            self._write_line(f"{level}{record.getMessage()}", record.levelno)
        except Exception:
            self.handleError(record)
        finally:
            self._local.inside = False


class _RunLog(logging.FileHandler):
    """A file that cannot be written is reported once, and not by a traceback for every line."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            to_stderr(f"{self.baseFilename} cannot be written: {sys.exception()}", logging.WARNING)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what is left in its buffer
            super().close()


class EarlyLines(logging.Handler):
    """Put this around what comes before `start_logging`: warnings are shown at once, and kept for
    the file that is not there yet."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._console = _Console(to_stderr, logging.WARNING)
        self._kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(record)
        self._console.handle(record)

    def hand_over(self, to_file: logging.Handler) -> None:
        """The file is there, and so is whoever shows lines from now on."""
        logging.getLogger().removeHandler(self)
        for record in self._kept:
            to_file.handle(record)

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


def start_logging(
    file: Path, level: str, write_line: Callable[[str, int], None] | None
) -> Callable[[], None]:
    """Handlers on the root logger until the returned function is called, which puts everything
    back.

    `level` holds for our own modules; other libraries are heard from WARNING on (DEBUG lets them
    through from INFO on). `write_line(text, level number)` shows a line in the terminal; None: the
    file only."""
    number = logging.getLevelNamesMapping()[level.upper()]
    to_file = _RunLog(file, encoding="utf-8", delay=False)
    to_file.setFormatter(logging.Formatter(_FORMAT))
    to_file.addFilter(lambda record: not getattr(record, "terminal_only", False))
    handlers: list[logging.Handler] = [to_file]
    if write_line is not None:
        handlers.append(_Console(write_line, number))
    root = logging.getLogger()
    before = {name: logging.getLogger(name).level for name in OURS}
    root_level = root.level
    for early in [h for h in root.handlers if isinstance(h, EarlyLines)]:
        early.hand_over(to_file)
    root.setLevel(logging.INFO if number <= logging.DEBUG else logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(number)
    for handler in handlers:
        root.addHandler(handler)
    show_warning = warnings.showwarning
    logging.captureWarnings(True)

    def stop() -> None:
        logging.captureWarnings(False)
        warnings.showwarning = show_warning
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(root_level)
        for name, old in before.items():
            logging.getLogger(name).setLevel(old)

    return stop


def to_stderr(text: str, level: int) -> None:
    print(text, file=sys.stderr, flush=True)
