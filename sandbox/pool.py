"""`async with Sandbox() as sandbox: result = await sandbox.run("print(1)")`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from sandbox.limits import Limits
from sandbox.reasons import why_impossible
from sandbox.result import SandboxError, SandboxResult, SandboxUnavailable
from sandbox.worker import Worker


class Sandbox:
    """A pool of warm interpreters, each behind walls of its own. It belongs to one event loop.

    Every call is a process of its own, forked from a warm one, in an empty folder, /tmp to it; when
    it ends, all that it started is killed and the folder is gone. Calls share what was there before
    any of them: the interpreter's memory as it was when warm (modules imported, the seed of hashes,
    where the libraries lie), read-only files, the processor and the clock. Nothing goes from one
    call to another, and nothing that the owner holds is there.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        num_workers: int | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        """`num_workers`: how many programs run at once, by default as many as there are cores.
        `preload`: modules (numpy, sympy) to import once, ahead of all programs."""
        self.limits = limits or Limits()
        self._preload = tuple(preload)
        num = len(os.sched_getaffinity(0)) if num_workers is None else num_workers
        if num < 1:
            raise ValueError(f"num_workers {num}: expected at least 1")
        self._slots = asyncio.Semaphore(num)
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        """Starts one worker, the others when they are needed. SandboxUnavailable where that cannot
        be: nothing ever runs unprotected."""
        if missing := why_impossible():
            raise SandboxUnavailable(missing)
        self._idle.append(await Worker.start(self.limits, self._preload))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    async def run(
        self,
        code: str,
        stdin: str = "",
        *,
        seconds: float | None = None,
        name: str = "__main__",
        echo: bool = False,
    ) -> SandboxResult:
        """Runs `code` as a program whose `__name__` is `name`. `seconds`, from the moment a worker
        is free, may only be less than the limit's. `echo`: as in a notebook, the value of a last
        expression is printed, unless it is None.

        Whatever the program does is a result. SandboxError where the sandbox itself failed."""
        allowed = self.limits.seconds
        async with self._slots:
            if self._closed:
                raise SandboxError("the sandbox is closed")
            worker = (
                self._idle.pop() if self._idle else await Worker.start(self.limits, self._preload)
            )
            self._busy.add(worker)
            healthy = False
            try:
                result = await worker.run(
                    code, stdin, seconds=min(seconds or allowed, allowed), name=name, echo=echo
                )
                healthy = True
                return result
            finally:  # cancelled, too: the worker is busy with what nobody waits for
                self._busy.discard(worker)
                if healthy and not self._closed:
                    self._idle.append(worker)
                else:
                    await worker.kill()

    async def close(self) -> None:
        """Kills all programs and workers, and returns when they are gone. It may be called more
        than once."""
        self._closed = True
        for worker in [*self._idle, *self._busy]:
            await worker.kill()
        self._idle.clear()
