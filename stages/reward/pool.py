"""Worker processes for scorers that compute and for users' plain functions. They are spawned when
first needed, and killed and replaced when one hangs."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

_PR_SET_PDEATHSIG = 1
# what a scorer imports may be torch: minutes on a cold disk, and not the answer's fault
PREPARE_SECONDS = 600.0
Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Overdue(TimeoutError):  # noqa: N818
    """The scorer gave no score by its deadline."""


def _initialise(parent: int) -> None:
    """Runs in the worker: it dies with the driver, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


class WorkerPool:
    """`await pool.run(function, args, timeout_seconds)`.

    Each worker is a pool of one, so that killing it hits no neighbour.
    """

    def __init__(self, num_workers: int) -> None:
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._slots = asyncio.Semaphore(num_workers)
        self._closed = False

    async def run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        timeout_seconds: float,
        *,
        prepare: Call | None = None,
    ) -> Any:
        """What `function(*args)` returns or raises, in the main thread of a worker. Overdue after
        the deadline, RuntimeError when the worker died. The deadline counts from the moment a
        worker is free and has run `prepare` (once a worker): neither a queue nor an import is the
        scorer's fault."""
        async with self._slots:
            if self._closed:
                raise RuntimeError("the reward workers are closed")
            worker = self._idle.pop() if self._idle else _Worker()
            self._busy.add(worker)
            try:
                if prepare is not None:
                    await worker.prepare(prepare)
                return await worker.run(function, args, timeout_seconds)
            finally:  # cancelled, too: the worker is busy with what nobody waits for
                self._busy.discard(worker)
                if worker.healthy and not self._closed:
                    self._idle.append(worker)
                else:
                    worker.kill()

    def close(self) -> None:
        """Ends every worker. It may be called more than once."""
        self._closed = True
        for worker in [*self._idle, *self._busy]:
            worker.kill()
        self._idle.clear()


class _Worker:
    """One process. It is healthy while it is idle: between calls, none of which was given up."""

    def __init__(self) -> None:
        # spawn: a fork of a process with threads (aiohttp, torch) may deadlock
        self._executor = ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_initialise,
            initargs=(os.getpid(),),
        )
        self._prepared: set[Hashable] = set()
        self.healthy = True

    async def prepare(self, call: Call) -> None:
        if call not in self._prepared:
            await self.run(*call, PREPARE_SECONDS)
            self._prepared.add(call)

    async def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], timeout_seconds: float
    ) -> Any:
        self.healthy = False
        future = asyncio.get_running_loop().run_in_executor(self._executor, function, *args)
        future.add_done_callback(_seen)
        try:
            async with asyncio.timeout(timeout_seconds) as deadline:
                # a function may itself raise TimeoutError: told apart by who waits
                await asyncio.wait({future})
        except TimeoutError:
            assert deadline.expired()
            raise Overdue(
                f"no score after {timeout_seconds:g} s (--reward-timeout-seconds); its worker"
                " was killed"
            ) from None
        if future.cancelled() or isinstance(future.exception(), BrokenProcessPool):
            raise RuntimeError("the scorer's process died")
        self.healthy = True
        return future.result()

    def kill(self) -> None:
        # no public way to end a busy worker
        processes = list((getattr(self._executor, "_processes", None) or {}).values())
        for process in processes:
            process.kill()
        self._executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.join(5)


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Like asyncio.to_thread, but in a daemon thread of its own: one that hangs takes no place in a
    pool, and does not hold up the end of the run."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():  # nobody waits any more
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = function(*args)
        except BaseException as e:  # handed to whoever awaits
            error = e
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="reward", daemon=True).start()
    return await future


def _seen(future: asyncio.Future[Any]) -> None:
    """A killed worker's future fails after its waiter has left: that is no news, and asyncio need
    not print it."""
    if not future.cancelled():
        future.exception()
