"""Group commit: many callers wait for their writes to reach the disk, and one fsync at a time
serves them all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Brings the directory's entries to the disk: a new file survives power loss only when its
    entry is there too (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class GroupCommit:
    """`await commit()` returns when a sync that began after the call has ended. Whoever calls while
    one runs shares the next (Gray and Reuter 1992, "Transaction Processing", section 9.4.6, group
    commit)."""

    def __init__(self, sync: Callable[[], Callable[[], None]]) -> None:
        """`sync()` runs on the event loop and returns the part that a thread can do. What either
        raises, every waiter gets."""
        self._sync = sync
        self._begun = self._done = 0
        self._running: asyncio.Future[None] | None = None

    async def __call__(self) -> None:
        mine = self._begun + 1
        while self._done < mine:
            if self._running is None:
                self._running = asyncio.ensure_future(self._once())
            await asyncio.shield(self._running)

    async def _once(self) -> None:
        self._begun += 1
        number = self._begun
        try:
            await asyncio.to_thread(self._sync())
        finally:
            self._running = None
        self._done = number
