"""No process of a sandbox outlives its owner, however the owner ends."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.pool import Sandbox
from sandbox.resident import _descendants
from sandbox.result import SandboxError

ROOT = Path(__file__).resolve().parents[3]
BUSY = "import os\nos.fork(); os.fork()\nprint('runs')\nwhile True: pass"
OWNER = f"""
import asyncio, json, os
from sandbox.pool import Sandbox
from sandbox.resident import _descendants
async def main():
    async with Sandbox(num_workers=1) as sandbox:
        run = asyncio.create_task(sandbox.run({BUSY!r}))
        while len(_descendants(os.getpid())) < 7:  # warden, zygote, first and four of the program
            await asyncio.sleep(0.01)
        print(json.dumps(_descendants(os.getpid())), flush=True)
        await run
asyncio.run(main())
"""


def ended(process: int, seconds: float = 30.0) -> bool:
    try:
        fd = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


def test_none_after_kill_9_of_the_owner() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    processes = json.loads(owner.stdout.readline())
    assert len(processes) == 7
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert all(ended(process) for process in processes)


async def test_none_after_close_and_after_cancellation() -> None:
    before = set(_descendants(os.getpid()))
    async with Sandbox(num_workers=2) as sandbox:
        first = asyncio.create_task(sandbox.run(BUSY))
        second = asyncio.create_task(sandbox.run(BUSY))
        processes = await descendants(14, before)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await sandbox.run("print(1)")).stdout == "1\n"
    assert all(ended(process, 0.0) for process in processes)
    with pytest.raises(SandboxError):
        await second
    with pytest.raises(SandboxError, match="closed"):
        await sandbox.run("print(1)")


async def test_a_zygote_that_is_killed_is_an_error_and_is_replaced() -> None:
    before = set(_descendants(os.getpid()))
    async with Sandbox(num_workers=1) as sandbox:
        task = asyncio.create_task(sandbox.run(BUSY))
        processes = await descendants(7, before)
        os.kill(sandbox_zygote(processes), signal.SIGKILL)
        with pytest.raises(SandboxError, match="died"):
            await task
        assert (await sandbox.run("print(1)")).stdout == "1\n"


async def descendants(number: int, before: set[int]) -> list[int]:
    """Ours, as soon as there are so many: warden, zygote, first and four of the program each. But
    for those that other tests have left in this process."""

    def found() -> list[int]:
        return [process for process in _descendants(os.getpid()) if process not in before]

    # other processes: no event tells of them
    while len(found()) < number:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return found()


def sandbox_zygote(processes: list[int]) -> int:
    """The warden is our child, the zygote its."""
    return next(
        process
        for process in processes
        if int(Path(f"/proc/{process}/stat").read_text().rsplit(")")[1].split()[1]) == processes[0]
    )
