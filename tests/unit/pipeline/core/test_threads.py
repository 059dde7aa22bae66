"""Plain functions in threads: their results, what they raise, and where they stand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.core.awaits import where_it_stands
from pipeline.core.threads import in_thread


def raises(error: BaseException) -> Callable[[], Any]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize("error", [KeyError("a"), StopIteration(), SystemExit(1)])
async def test_what_it_raises_is_raised(error: BaseException) -> None:
    with pytest.raises((type(error), RuntimeError)) as raised:
        await in_thread(raises(error))
    assert error in (raised.value, raised.value.__cause__)


async def test_it_blocks_nobody_and_its_line_is_known() -> None:
    begun, held = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def blocking() -> str:
        loop.call_soon_threadsafe(begun.set)
        held.wait()
        return "done"

    task = asyncio.create_task(in_thread(blocking))
    await begun.wait()
    stood = where_it_stands(task)
    held.set()
    assert "(blocking)" in stood and "test_threads.py" in stood
    assert await task == "done"


async def test_cancelled_it_is_left_alone() -> None:
    begun, held, ended = asyncio.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def blocking() -> None:
        loop.call_soon_threadsafe(begun.set)
        held.wait()
        loop.call_soon_threadsafe(ended.set)

    task = asyncio.create_task(in_thread(blocking))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held.set()
    await ended.wait()
