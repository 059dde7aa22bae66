"""Python as a tool: every call is a program of its own in a sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from pipeline.core.errors import ConfigError
from sandbox.limits import Limits
from sandbox.pool import Sandbox
from sandbox.reasons import why_unavailable
from sandbox.result import SandboxResult
from stages.generate.tools.tool import Tool

MOST_CHARACTERS = 10_000  # of what a program said
_WAIT_SECONDS = 600.0  # for a free worker, beside the program's own time
_DESCRIPTION = (
    "Runs a Python program and returns what it prints, and the value of its last line if that is an"
    " expression. Every call starts anew: nothing is left of earlier ones. There is no network."
)


def python_tool(
    args: Any,
    *,
    name: str = "python",
    description: str = _DESCRIPTION,
    preload: Sequence[str] = (),
    num_workers: int | None = None,
) -> Tool:
    """A tool with one argument, `code`, under --sandbox-seconds and --sandbox-memory-bytes.

    `args`: as a generate function gets them. `preload`: modules that are imported once, ahead of
    all calls (numpy, sympy). `num_workers`: programs at once, by default as many as there are
    cores. All tools that are made alike share one sandbox, which is started at the first call in an
    event loop and ends with the process.

    Raises ConfigError where no sandbox can be built."""
    if missing := why_unavailable():
        raise ConfigError(f"the tool {name}: {missing}")
    limits = Limits(
        seconds=args.sandbox_seconds,
        memory_bytes=args.sandbox_memory_bytes,
        output_bytes=4 * MOST_CHARACTERS,
    )
    pool = _pool(limits, num_workers, tuple(preload))

    async def call(arguments: dict[str, Any]) -> str:
        sandbox = await pool.started()
        return as_shown(await sandbox.run(arguments["code"], echo=True), limits)

    return Tool(
        name=name,
        description=description,
        parameters={
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The program."}},
            "required": ["code"],
        },
        call=call,
        timeout_seconds=limits.seconds + _WAIT_SECONDS,  # the program's own time ends it before
    )


def as_shown(result: SandboxResult, limits: Limits) -> str:
    """What the model reads: what was printed, then the error's last lines, then what ended it."""
    parts = [_cut(result.stdout), _cut(result.stderr)]
    if result.killed_by == "time":
        parts.append(f"error: killed after {limits.seconds:g} seconds")
    elif result.killed_by == "memory":
        parts.append(f"error: killed, it used more than {limits.memory_bytes >> 20} MiB of memory")
    elif result.exit_code < 0:
        parts.append(f"error: killed by signal {-result.exit_code}")
    return "\n".join(part.rstrip("\n") for part in parts if part.strip()) or "(no output)"


def _cut(text: str) -> str:
    """The beginning and the end: of a traceback, the end says most."""
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}\n... ({len(text) - 2 * half} characters left out)\n{text[-half:]}"


class _Pool:
    """One sandbox an event loop, started when it is first asked for."""

    def __init__(self, limits: Limits, num_workers: int | None, preload: Sequence[str]) -> None:
        self._limits, self._num_workers, self._preload = limits, num_workers, preload
        self._starting: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[Sandbox]] = (
            WeakKeyDictionary()
        )

    async def started(self) -> Sandbox:
        loop = asyncio.get_running_loop()
        task = self._starting.get(loop)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._starting[loop] = loop.create_task(self._start())
        return await asyncio.shield(task)  # others wait for it, too

    async def _start(self) -> Sandbox:
        sandbox = Sandbox(self._limits, num_workers=self._num_workers, preload=self._preload)
        return await sandbox.__aenter__()


_pool = cache(_Pool)
