"""What a server's process has said to its standard error last: for the message where it fails. The
terminal is the run's."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TextIO

KEPT_BYTES = 2000


class LastWords:
    """`file` is what the process is given. It is read on the loop: the process is never held up."""

    def __init__(self) -> None:
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        self.file: TextIO = os.fdopen(write, "w")
        self._kept = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read, self._take)

    def text(self) -> str:
        """In brackets, or nothing."""
        with contextlib.suppress(OSError):
            while self._take():
                pass
        said = self._kept.decode(errors="replace").strip()
        return f" (its last words: {said})" if said else ""

    def close(self) -> None:
        self._loop.remove_reader(self._read)
        self.file.close()
        os.close(self._read)

    def _take(self) -> bool:
        try:
            chunk = os.read(self._read, 1 << 16)
        except BlockingIOError:
            return False
        if not chunk:  # every writer is gone
            self._loop.remove_reader(self._read)
        self._kept = (self._kept + chunk)[-KEPT_BYTES:]
        return bool(chunk)
