"""One SGLang server: a process group of its own that dies with its parent and leaves nothing
behind."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import aiohttp
import psutil

from pipeline.core.engine_auth import engine_headers
from pipeline.core.errors import EngineError
from pipeline.core.ports import free_port, is_free
from stages.engine.scratch import Scratch
from stages.engine.spec import EngineSpec

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
PROBE_SECONDS = 5.0  # deadline of a question that costs the server nothing
GENERATE_PROBE_SECONDS = 30.0  # SGLang itself waits 20 s for a sign of life of its scheduler
END_SECONDS = 10.0  # for killed processes to be gone
END_POLL_SECONDS = 0.02
TAIL_LINES = 25

IN_USE = "address already in use"
HINTS = (
    (
        r"unrecognized arguments|invalid choice|invalid \w+ value|expected .* argument",
        "check the --sglang-* flags",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError|Not enough memory",
        "lower --sglang-mem-fraction-static, or use a smaller model",
    ),
    (IN_USE, "another program took the port; start again, or set --sglang-port"),
    (
        r"No module named|ImportError|undefined symbol",
        "the installation is not the pinned one: run `make setup` (or `make setup-gpu`)",
    ),
    (
        r"does not appear to have a file|No such file or directory|Unrecognized model|safetensors",
        "check the folder --hf-checkpoint names",
    ),
    (
        r"No space left on device",
        "free disk space in /dev/shm, the temporary folder or the run directory",
    ),
)


class Engine:
    """A server that can be started, asked for signs of life, and ended, again and again at one
    address."""

    def __init__(self, spec: EngineSpec, port: int | None = None) -> None:
        self.spec = spec
        self.port = int(spec.user.get("port") or port or free_port(host=spec.host))
        self.endpoint = f"http://{spec.host}:{self.port}"
        self.on_death: Callable[[str], None] | None = None  # nobody watches it here: see `ended`
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: Scratch | None = None
        self._log_start = 0

    @property
    def name(self) -> str:
        return f"engine {self.spec.index} ({self.endpoint})"

    @property
    def alive(self) -> bool:
        """Does the server process run? (That says nothing about whether it answers.)"""
        return self._process is not None and self._process.poll() is None

    async def start(self, weight_version: int, timeout_seconds: float) -> None:
        """Starts the server and returns when it takes requests.

        Raises EngineError with the end of its log."""
        try:
            await self._start(weight_version, timeout_seconds)
        except EngineError as error:
            # Inside ports (rendezvous of its ranks, sockets between its processes) are chosen anew
            # at every start.
            port_is_free = is_free(self.port, self.spec.host)
            if not re.search(IN_USE, str(error), re.IGNORECASE) or not port_is_free:
                raise
            logger.warning(
                "%s: a port that it chose was taken a moment later; it starts again", self.name
            )
            await self._start(weight_version, timeout_seconds)

    async def _start(self, weight_version: int, timeout_seconds: float) -> None:
        await self.stop()
        if not is_free(self.port, self.spec.host):
            raise EngineError(f"{self.name}: port {self.port} is taken by another program")
        self._spawn(weight_version)
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                aiohttp.ClientSession(headers=engine_headers(self.spec.user)) as session,
            ):
                while not await answers(session, f"{self.endpoint}/{self._ready_path}"):
                    self._note_shared_memory()  # now: it may end before it is ready
                    if not self.alive:
                        raise self._failure(f"ended with {self._exit()} while it started")
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            error = self._failure(
                f"was not ready after {timeout_seconds:g} s",
                "raise --engine-start-timeout-seconds if it was still loading",
            )
            await self.stop()
            raise error from None
        except BaseException:
            await self.stop()
            raise
        self._note_shared_memory()

    @property
    def _ready_path(self) -> str:
        """What answers when it is ready. Of an engine over several nodes, all but the first only
        say that their processes are up."""
        return "ready" if self.spec.node_rank == 0 else "health"

    async def healthy(self, *, deep: bool) -> bool:
        """Does it answer? `deep` also asks whether its scheduler generates, which a paused engine
        does not do."""
        return self.alive and await is_healthy(
            self.endpoint, deep=deep, headers=engine_headers(self.spec.user)
        )

    async def ended(self) -> str:
        """Returns how, when the process that runs now has ended."""
        process = self._process
        if process is not None:
            await asyncio.to_thread(process.wait)
        return f"ended with {self._exit()}"

    async def stop(self) -> None:
        """Ends every process of the engine and removes its shared memory and temporary files. It
        may be called more than once."""
        self.kill()
        for waited in range(int(END_SECONDS / END_POLL_SECONDS)):
            left = self._members()
            if not self.alive and not left:
                break
            if waited * END_POLL_SECONDS >= END_SECONDS / 2:
                _kill(left)
            await asyncio.sleep(END_POLL_SECONDS)
        else:
            raise EngineError(
                f"{self.name}: processes {self._members()} survive SIGKILL; are they stuck in a"
                " driver?"
            )
        self._sweep()

    def kill(self) -> None:
        """Does the same without waiting for the processes to be gone; from any thread, at any
        time."""
        if self._process is None:
            return
        members = self._members()
        self._note_shared_memory()
        # Python's resource trackers remove leaked semaphores when everyone else is gone, and end:
        # let them.
        _kill(pid for pid in members if not is_resource_tracker(pid))
        self._sweep()

    async def on_nodes(self, work: Callable[..., Any], *args: Any) -> list[Any]:
        """See SGLangPool.on_nodes. It runs on this process's node."""
        return [await asyncio.to_thread(work, *args)]

    def log_tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines that the current (or last) process wrote."""
        try:
            with self.spec.log_path.open("rb") as log:
                log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - (1 << 16)))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:]) or "(it wrote nothing)"

    def _spawn(self, weight_version: int) -> None:
        self._scratch = Scratch()
        self.spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        inner = free_port([self.port], host=self.spec.host)
        command = self.spec.command(self.port, weight_version, inner)
        # for its owner alone: SGLang writes all of its options down, keys included
        with open(self.spec.log_path, "ab", opener=_private) as log:
            self._log_start = log.tell()
            log.write((self.spec.shown(command) + "\n").encode())
            log.flush()
            # A session of its own: the terminal's Ctrl-C does not reach it, and all it starts can
            # be found by it.
            self._process = subprocess.Popen(
                command,
                env=self.spec.environment(os.environ, self._scratch.path),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        logger.info(
            "%s starts as process %d, log in %s", self.name, self._process.pid, self.spec.log_path
        )

    def _members(self) -> list[int]:
        return _session_members(self._process.pid) if self._process is not None else []

    def _note_shared_memory(self) -> None:
        if self._scratch is not None:
            self._scratch.note_shared_memory(self._members())

    def _sweep(self) -> None:
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None

    def _exit(self) -> str:
        code = self._process.returncode if self._process is not None else None
        if code is not None and code < 0:
            return f"signal {signal.Signals(-code).name}" + (
                " (out of memory? see dmesg)" if code == -signal.SIGKILL else ""
            )
        return f"exit code {code}"

    def _failure(self, what: str, hint: str = "") -> EngineError:
        tail = self.log_tail()
        hint = next(
            (text for pattern, text in HINTS if re.search(pattern, tail, re.IGNORECASE)), hint
        )
        said = "\n".join("    " + line for line in tail.splitlines())
        return EngineError(
            f"{self.name} {what}.{f' Hint: {hint}.' if hint else ''} The last lines of"
            f" {self.spec.log_path}:\n{said}"
        )


async def is_healthy(endpoint: str, *, deep: bool, headers: Mapping[str, str]) -> bool:
    """See Engine.healthy; from wherever it is asked."""
    async with aiohttp.ClientSession(headers=headers) as session:
        if not await answers(session, f"{endpoint}/model_info"):
            return False
        return not deep or await answers(
            session, f"{endpoint}/health_generate", GENERATE_PROBE_SECONDS
        )


async def answers(
    session: aiohttp.ClientSession, url: str, timeout_seconds: float = PROBE_SECONDS
) -> bool:
    """Is the answer to a question at `url` 200?"""
    try:
        async with session.get(
            url, timeout=aiohttp.ClientTimeout(total=timeout_seconds)
        ) as response:
            return response.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def is_resource_tracker(pid: int) -> bool:
    """Is it Python's, which removes the semaphores of those that are gone, and ends?"""
    try:
        return "multiprocessing.resource_tracker" in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _session_members(session_id: int) -> list[int]:
    """Live processes of a session, leader included; zombies are as good as gone."""
    return [p.pid for p in psutil.process_iter() if _session_of(p) == session_id]


def _session_of(process: psutil.Process) -> int | None:
    """The session of a process; None for one that has ended."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (psutil.Error, OSError):
        return None
