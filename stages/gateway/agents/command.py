"""--agent-command: a process of the user's for every sample, which finds the gateway in its
environment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import orjson

from pipeline.core.errors import GenerateError
from stages.gateway.agents.task import Outcome, with_output
from stages.gateway.server import Access

logger = logging.getLogger(__name__)

RewardBy = Literal["posted", "exit_code"]
KEEPER = Path(__file__).with_name("keeper.py")
END_SECONDS = 3.0  # for the keeper to have killed all, before it is killed itself
KEPT_OUTPUT_BYTES = 1 << 14  # the end of what the agent prints; the rest is read and forgotten
LOGGED = 8  # agents that end well
MAX_TASK_BYTES = 100_000  # in the environment, of which Linux takes 128 KiB a variable
REWARDS = {0: 1.0, 1: 0.0}  # by exit code


class CommandAgent:
    def __init__(self, command: str, *, reward_by: RewardBy = "posted") -> None:
        """`command` is split as a shell would, and run by none. `reward_by` "exit_code": 0 stands
        for 1.0, 1 for 0.0, and any other for an agent that has failed."""
        self._command, self._reward_by = shlex.split(command), reward_by
        self._num_logged = 0

    async def __call__(self, task: dict[str, Any], access: Access, label: Any) -> Outcome:
        """Raises GenerateError where the command cannot be started."""
        with tempfile.TemporaryDirectory(
            prefix="slipstream-agent-", ignore_cleanup_errors=True
        ) as folder:
            environment = _environment(task, access, Path(folder))
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", str(KEEPER), str(os.getpid())),
                    *self._command,
                    stdin=DEVNULL,
                    stdout=PIPE,
                    stderr=STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise GenerateError(f"--agent-command could not be started: {error}") from error
            output = bytearray()
            try:
                await _read(process, output)
                code = await process.wait()
            finally:
                await _end(process)
                self._log(task, process, output.decode(errors="replace"))
            return self._outcome(code, output.decode(errors="replace"))

    def _log(self, task: dict[str, Any], process: Process, output: str) -> None:
        """The first agents' output, and that of all that do not end well: into the run's log."""
        if process.returncode == 0 or self._reward_of(process.returncode) is not None:
            self._num_logged += 1
            if self._num_logged > LOGGED:
                return
        logger.info(
            "agent of sample %s ended with %s:\n%s",
            task["index"],
            process.returncode,
            output,
            extra={"file_only": True},
        )

    def _reward_of(self, code: int | None) -> float | None:
        return REWARDS.get(code) if self._reward_by == "exit_code" and code is not None else None

    def _outcome(self, code: int, output: str) -> Outcome:
        reward = self._reward_of(code)
        if reward is not None or code == 0:
            return Outcome(reward=reward, output=output)
        said = with_output(f"the agent ended with exit code {code}", output)
        return Outcome(failure=said, output=output)


def _environment(task: dict[str, Any], access: Access, folder: Path) -> dict[str, str]:
    said = orjson.dumps(task, default=str, option=orjson.OPT_SERIALIZE_NUMPY)
    file = folder / "task.json"
    file.write_bytes(said)
    # a proxy of the machine's has no way to the gateway
    around = ",".join(filter(None, (os.environ.get("no_proxy"), "127.0.0.1,localhost,::1")))
    host = access.url.removeprefix("http://").rpartition(":")[0]
    own: Mapping[str, str] = {
        "OPENAI_BASE_URL": access.base_url,
        "OPENAI_API_KEY": access.token,
        "ANTHROPIC_BASE_URL": access.url,
        "ANTHROPIC_API_KEY": access.token,
        "SLIPSTREAM_TASK_FILE": str(file),
        "SLIPSTREAM_REWARD_URL": access.reward_url,
        "SLIPSTREAM_MODEL": str(task["model"]),
        "TMPDIR": str(folder),
        "no_proxy": f"{around},{host}",
        "NO_PROXY": f"{around},{host}",
    }
    small = {"SLIPSTREAM_TASK": said.decode()} if len(said) <= MAX_TASK_BYTES else {}
    return {**os.environ, **own, **small}


async def _read(process: Process, kept: bytearray) -> None:
    """Until nobody can print any more."""
    assert process.stdout is not None
    while part := await process.stdout.read(1 << 16):
        kept += part
        del kept[:-KEPT_OUTPUT_BYTES]


async def _end(process: Process) -> None:
    """Ends the keeper, which ends all others; and their group, should it have been killed."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait({asyncio.ensure_future(process.wait())}, timeout=END_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
