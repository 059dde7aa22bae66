"""One zygote, as its owner holds it: started, given one program at a time, killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

from sandbox.inside.zygote import KILL
from sandbox.limits import Limits
from sandbox.reasons import why_refused
from sandbox.resident import resident_below
from sandbox.result import SandboxError, SandboxResult, SandboxUnavailable

LOOK_EVERY_SECONDS = 0.05  # at memory, while a program runs
START_SECONDS = 60.0  # for imports of what is to be warm, on a cold disk
GRACE_SECONDS = 10.0  # beyond a program's own, for the zygote to say how it ended
_ROOT = str(Path(__file__).resolve().parent.parent)
_START = "import sys; sys.path.insert(0, {!r}); from sandbox.inside.warden import main; main()"


class Worker:
    """Not for two calls at once. After an error or a cancellation it is of no use: kill it."""

    def __init__(
        self, process: subprocess.Popen[bytes], control: socket.socket, said: int, limits: Limits
    ) -> None:
        self._process, self._control, self._said = process, control, said
        self._limits = limits
        self._receives = False
        self._zygote = 0
        self._zygote_ends: int | None = None  # a pidfd

    @classmethod
    async def start(cls, limits: Limits, preload: Sequence[str] = ()) -> Self:
        """SandboxUnavailable where the walls cannot be built, or a module of `preload` cannot be
        imported within them."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        said = os.memfd_create("sandbox stderr", os.MFD_CLOEXEC)
        command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _START.format(_ROOT)]
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the owner's
                env={
                    "MALLOC_ARENA_MAX": "2"
                },  # libc reads it once; an arena a thread would be all memory
                cwd="/",
            )
        worker = cls(process, ours, said, limits)
        try:
            ours.send(json.dumps(_settings(limits, preload)).encode())
            async with asyncio.timeout(START_SECONDS):
                await worker._ready()
        except BaseException as error:
            await worker.kill()
            if isinstance(error, TimeoutError):
                raise SandboxUnavailable(
                    f"no sandbox within {START_SECONDS:g} s: expected one within a second"
                ) from error
            raise
        return worker

    async def run(
        self, code: str, stdin: str, *, seconds: float, name: str, echo: bool
    ) -> SandboxResult:
        files = [_file(code), _file(stdin), _file(""), _file("")]
        try:
            request = {"seconds": seconds, "name": name, "echo": echo}
            socket.send_fds(self._control, [json.dumps(request).encode()], files)
            answer, is_full = await self._outcome(seconds)
            stdout, more = self._output(files[2])
            stderr, still_more = self._output(files[3])
        except OSError as error:
            raise SandboxError(f"the sandbox is gone: {error}{self._last_words()}") from error
        finally:
            for file in files:
                os.close(file)
        is_full = is_full and answer["exit_code"] == -signal.SIGKILL  # else it ended before
        killed_by: Literal["time", "memory"] | None = "memory" if is_full else None
        return SandboxResult(
            stdout=stdout,
            stderr=stderr,
            exit_code=answer["exit_code"],
            killed_by="time" if answer["late"] else killed_by,
            truncated=more or still_more,
            seconds=answer["seconds"],
        )

    async def kill(self) -> None:
        """Ends all its processes; returns when they are gone. A call under way raises
        SandboxError."""
        self._process.kill()
        if not self._receives:  # else that comes to its end first, and whoever waits kills again
            self._control.close()
        ends, self._zygote_ends = self._zygote_ends, None
        if ends is not None:
            await _readable(ends)
            os.close(ends)
        self._process.wait()
        said, self._said = self._said, -1
        if said >= 0:
            os.close(said)

    async def _ready(self) -> None:
        while True:
            answer = await self._receive()
            if "error" in answer:
                raise SandboxUnavailable(why_refused(answer["error"], answer["errno"]))
            if "zygote" in answer:
                self._zygote = answer["zygote"]
                self._zygote_ends = os.pidfd_open(self._zygote)
            if "ready" in answer:
                return

    async def _outcome(self, seconds: float) -> tuple[dict[str, Any], bool]:
        """What the zygote says, and whether the program was killed for its memory."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds + GRACE_SECONDS
        is_full = False
        answer = asyncio.ensure_future(self._receive())
        try:
            while not (await asyncio.wait({answer}, timeout=LOOK_EVERY_SECONDS))[0]:
                if loop.time() > deadline:
                    raise SandboxError(
                        f"the sandbox did not end a program of {seconds:g} s within"
                        f" {GRACE_SECONDS:g} s more"
                    )
                if not is_full and resident_below(self._zygote) > self._limits.memory_bytes:
                    is_full = True
                    self._control.send(KILL)
            return answer.result(), is_full
        finally:
            answer.cancel()
            await asyncio.wait({answer})

    async def _receive(self) -> dict[str, Any]:
        self._receives = True
        try:
            text = await asyncio.get_running_loop().sock_recv(self._control, 1 << 16)
        finally:
            self._receives = False
        if not text:
            raise SandboxError(f"the sandbox died{self._last_words()}")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _output(self, file: int) -> tuple[str, bool]:
        """What was written, and whether there was more."""
        most = self._limits.output_bytes
        text = os.pread(file, most + 1, 0)
        return text[:most].decode(errors="replace"), len(text) > most

    def _last_words(self) -> str:
        text = os.pread(self._said, 10_000, 0).decode(errors="replace").strip()
        return f": {text}" if text else ""


def _settings(limits: Limits, preload: Sequence[str]) -> dict[str, Any]:
    """What the warden is told. Paths are those of the owner's own Python."""
    found = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    packages = sorted(path for path in found if Path(path).is_dir())
    prefixes = sorted({sys.base_prefix, sys.base_exec_prefix})
    libraries = [f"{prefix}/{name}" for prefix in prefixes for name in ("bin", "lib", "lib64")]
    executable = getattr(sys, "_base_executable", sys.executable)
    return {
        "owner": os.getpid(),
        "root": _ROOT,
        "limits": asdict(limits),
        "folders": [*libraries, sysconfig.get_path("stdlib")],
        "packages": packages,
        "programs": [f"{sys.base_prefix}/bin"],
        "executable": executable,
        "preload": list(preload),
    }


def _file(text: str) -> int:
    """A file in memory that holds `text`, to be read from its beginning."""
    file = os.memfd_create("sandbox", os.MFD_CLOEXEC)
    data = memoryview(text.encode(errors="surrogatepass"))
    while data:
        data = data[os.write(file, data) :]
    os.lseek(file, 0, os.SEEK_SET)
    return file


async def _readable(file: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(file, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(file)
