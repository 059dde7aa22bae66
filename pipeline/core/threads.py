"""Plain functions of the user's: in a thread of their own, where they may block."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any


async def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns, done in a daemon thread, so that it never holds up the end of a run.
    Nobody can stop it: cancelled, it is left alone."""
    return await _Work(work).result()


class _Work:
    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Any] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="user's function", daemon=True)

    async def result(self) -> Any:
        self._thread.start()
        result, error = await self._future
        if error is not None:
            raise error
        return result

    @property
    def driven(self) -> _Standing | None:
        """The lines of the thread, for pipeline.core.awaits: as if the task awaited them."""
        frame, inner = sys._current_frames().get(self._thread.ident or 0), None
        while frame is not None and frame.f_code is not _Work._run.__code__:
            inner = _Standing(frame, inner)
            frame = frame.f_back
        return inner

    def _run(self) -> None:
        result, error = None, None
        try:
            result = self._work()
        except BaseException as e:  # handed to whoever awaits
            error = e
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if not self._future.done():  # else nobody waits any more
            self._future.set_result((result, error))  # a future can hold no StopIteration


@dataclass(frozen=True, slots=True)
class _Standing:
    """A frame of a thread, by the names that a coroutine's have."""

    cr_frame: FrameType
    cr_await: _Standing | None
