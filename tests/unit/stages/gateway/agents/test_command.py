"""--agent-command: a process that finds all it needs in its environment, and of which nothing is
left when it has ended, however it did."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.core.errors import GenerateError
from stages.gateway.agents import command
from stages.gateway.agents.command import KEPT_OUTPUT_BYTES, CommandAgent, RewardBy
from stages.gateway.agents.task import Outcome
from stages.gateway.server import Access

ACCESS = Access(url="http://127.0.0.1:9", token="sk-1", rollout="r")
TASK: dict[str, Any] = {"prompt": "hi", "index": 3, "model": "tiny", "metadata": {}}


def temporary_folders() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("slipstream-agent-*"))


def script(code: str) -> str:
    return shlex.join([sys.executable, "-I", "-S", "-c", code])


async def ran(code: str, task: dict[str, Any] = TASK, *, reward_by: RewardBy = "posted") -> Outcome:
    return await CommandAgent(script(code), reward_by=reward_by)(task, ACCESS, "the label")


async def test_all_is_in_its_environment_but_the_label() -> None:
    outcome = await ran(
        "import os, json; print(json.dumps(dict(os.environ)));"
        "open(os.environ['TMPDIR'] + '/left', 'w')"
    )
    seen = json.loads(outcome.output)
    assert seen["OPENAI_BASE_URL"] == "http://127.0.0.1:9/v1"
    assert seen["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:9"
    assert seen["OPENAI_API_KEY"] == seen["ANTHROPIC_API_KEY"] == "sk-1"
    assert json.loads(seen["SLIPSTREAM_TASK"]) == TASK
    assert "127.0.0.1" in seen["NO_PROXY"].split(",")
    assert "the label" not in outcome.output
    assert seen["TMPDIR"] not in map(str, await asyncio.to_thread(temporary_folders))


async def test_a_task_too_large_for_an_environment_is_in_the_file() -> None:
    code = (
        "import os, json; print('SLIPSTREAM_TASK' in os.environ,"
        " len(json.load(open(os.environ['SLIPSTREAM_TASK_FILE']))['prompt']))"
    )
    outcome = await ran(code, {**TASK, "prompt": "x" * 200_000})
    assert outcome.output.split() == ["False", "200000"]


@pytest.mark.parametrize(
    ("code", "reward", "failure"),
    [
        ("", 1.0, None),
        ("raise SystemExit(1)", 0.0, None),
        ("raise SystemExit(2)", None, "exit code 2"),
        ("import os; os.kill(os.getpid(), 9)", None, "exit code 137"),
    ],
)
async def test_the_exit_code_is_the_reward(
    code: str, reward: float | None, failure: str | None
) -> None:
    outcome = await ran(code, reward_by="exit_code")
    assert outcome.reward == reward
    assert (failure or "") in (outcome.failure or "") and bool(failure) == bool(outcome.failure)


async def test_else_an_exit_code_is_a_failure_with_what_was_printed() -> None:
    outcome = await ran("print('hello'); raise ValueError('no tools')")
    assert outcome.reward is None
    assert "exit code 1" in (outcome.failure or "") and "no tools" in (outcome.failure or "")


async def test_a_command_that_is_not_there_is_named() -> None:
    outcome = await CommandAgent("no-such-command-here")(TASK, ACCESS, None)
    assert "exit code 127" in (outcome.failure or "")
    assert "no-such-command-here: No such file" in (outcome.failure or "")


async def test_of_much_output_the_end_is_kept() -> None:
    outcome = await ran(
        "import sys\nfor _ in range(300): sys.stdout.write('x' * 10**5)\nprint('end')"
    )
    assert len(outcome.output) <= KEPT_OUTPUT_BYTES and outcome.output.endswith("xend\n")


# leaves a process in a session of its own, whose parent ends at once, and prints its number
DAEMON = """
import os, sys, time
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(write, str(os.getpid()).encode())
        time.sleep(600)
    os._exit(0)
print(os.read(read, 20).decode(), flush=True)
"""


async def test_nothing_that_it_started_is_left_when_it_ends() -> None:
    outcome = await ran(DAEMON)
    assert not psutil.pid_exists(int(outcome.output))


async def started(code: str, tmp_path: Path) -> tuple[asyncio.Task[Outcome], list[int]]:
    """The task of an agent, and the processes that it has written down."""
    fifo = tmp_path / "pids"
    os.mkfifo(fifo)
    line = f"open({str(fifo)!r}, 'w').write"
    task = asyncio.create_task(
        ran(code.replace("print(", f"{line}(", 1).replace(", flush=True", ""))
    )
    pids = await asyncio.to_thread(fifo.read_text)
    return task, [int(pid) for pid in pids.split()]


SLOW = DAEMON.replace("print(os.read", "print(str(os.getpid()) + ' ' + os.read") + "time.sleep(600)"


async def test_nothing_is_left_of_one_that_is_cut_off(tmp_path: Path) -> None:
    task, pids = await started(SLOW, tmp_path)
    assert len(pids) == 2 and all(map(psutil.pid_exists, pids))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(map(psutil.pid_exists, pids))


async def test_a_keeper_that_is_killed_leaves_none_of_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "END_SECONDS", 0.05)
    task, pids = await started(SLOW.replace("os.setsid()", "pass"), tmp_path)
    keeper = psutil.Process(pids[0]).parent()
    assert keeper is not None
    keeper.send_signal(signal.SIGKILL)
    gone = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    task.cancel()  # at its deadline: nobody has told of the keeper's end
    with pytest.raises(asyncio.CancelledError):
        await task
    psutil.wait_procs(gone, timeout=10)  # whoever adopts them need not wait for them
    assert all(p.status() == psutil.STATUS_ZOMBIE for p in gone if p.is_running())


async def test_a_command_that_cannot_be_started_is_named(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(GenerateError, match="--agent-command could not be started"):
        await CommandAgent("true")(TASK, ACCESS, None)
