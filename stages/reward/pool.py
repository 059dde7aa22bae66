"""Worker processes for CPU-bound scorers: spawned when first needed, killed and replaced when a scorer hangs."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

_PR_SET_PDEATHSIG = 1


def _initialise(parent: int) -> None:
    """In the worker: die with the driver, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


class WorkerPool:
    """`await pool.run(function, args, timeout_seconds)`; TimeoutError after a deadline, RuntimeError when the worker died."""

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._executor: ProcessPoolExecutor | None = None
        self._slots = asyncio.Semaphore(num_workers)

    async def run(self, function: Callable[..., Any], args: tuple[Any, ...], timeout_seconds: float) -> Any:
        """The deadline counts from the moment a worker is free: a queue is not the scorer's fault."""
        async with self._slots:
            executor = self._executor = self._executor or self._start()
            future = asyncio.get_running_loop().run_in_executor(executor, function, *args)
            try:
                return await asyncio.wait_for(future, timeout_seconds)
            except TimeoutError:
                self._kill(executor)
                raise TimeoutError(f"no score after {timeout_seconds:g} s; its worker was killed") from None
            except BrokenProcessPool as error:
                self._kill(executor)
                raise RuntimeError("the scorer's process died, its own doing or a neighbour's") from error

    def close(self) -> None:
        if self._executor is not None:
            self._kill(self._executor)

    def _start(self) -> ProcessPoolExecutor:
        # spawn: a fork of a process with threads (aiohttp, torch) may deadlock
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._num_workers, mp_context=context, initializer=_initialise, initargs=(os.getpid(),))

    def _kill(self, executor: ProcessPoolExecutor) -> None:
        processes = list((getattr(executor, "_processes", None) or {}).values())  # no public way to end a busy worker
        for process in processes:
            process.kill()
        executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.join(5)
        if self._executor is executor:
            self._executor = None
