"""Simulated time, by which benchmarks/overlap.py measures what the pipeline decides."""

from __future__ import annotations

import asyncio
import threading
import time

from benchmarks.virtual_train import run_jumping as run


async def ends(order: list[float], seconds: float) -> None:
    await asyncio.sleep(seconds)
    order.append(seconds)


def test_waiting_takes_no_time_and_the_clock_says_that_it_did() -> None:
    async def work() -> tuple[float, list[float]]:
        began, order = asyncio.get_running_loop().time(), list[float]()
        async with asyncio.TaskGroup() as group:
            for seconds in (3e6, 1e6, 2e6):
                group.create_task(ends(order, seconds))
        return asyncio.get_running_loop().time() - began, order

    took, order = run(work())
    assert 3e6 <= took < 3e6 + 1 and order == [1e6, 2e6, 3e6]


def test_computing_takes_none() -> None:
    async def work() -> float:
        began = asyncio.get_running_loop().time()
        until = time.monotonic() + 0.01
        while time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return asyncio.get_running_loop().time() - began

    assert run(work()) == 0.0


def test_a_thread_that_works_for_the_loop_is_waited_for() -> None:
    """Time does not jump to a timer past it."""

    async def work() -> tuple[str, float]:
        began, go = asyncio.get_running_loop().time(), threading.Event()
        asyncio.get_running_loop().call_soon(go.set)
        async with asyncio.timeout(1e6):
            said = await asyncio.to_thread(lambda: go.wait() and "done")
        return str(said), asyncio.get_running_loop().time() - began

    said, took = run(work())
    assert said == "done" and took == 0.0
