"""Python as a tool: what the model reads of a program."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pipeline.core.errors import ConfigError
from sandbox.limits import Limits
from sandbox.result import SandboxResult
from stages.generate.tools import python_tool as module
from stages.generate.tools.python_tool import as_shown, python_tool
from stages.generate.tools.tool import Tool
from tests.unit.sandbox.conftest import needs_namespaces

ARGS = SimpleNamespace(sandbox_seconds=5.0, sandbox_memory_bytes=1 << 28)


@pytest.fixture
def tool() -> Iterator[Tool]:
    needs_namespaces()
    made: list[module.Sandbox] = []

    class Kept(module.Sandbox):
        def __init__(self, *given: object, **named: object) -> None:
            super().__init__(*given, **named)  # type: ignore[arg-type]
            made.append(self)

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "Sandbox", Kept)
    module._pool.cache_clear()
    python_tool(ARGS, num_workers=1)
    yield python_tool(ARGS, num_workers=1)
    patch.undo()
    assert len(made) <= 1, "one sandbox serves all calls"
    for sandbox in made:
        for worker in sandbox._idle:
            worker._process.kill()
            worker._process.wait()


async def test_tools_that_are_made_alike_share_a_sandbox(tool: Tool) -> None:
    assert await tool.call({"code": "1"}) == await python_tool(ARGS, num_workers=1).call(
        {"code": "1"}
    )


async def test_it_says_what_is_printed_and_the_last_value(tool: Tool) -> None:
    outputs = await asyncio.gather(
        tool.call({"code": "x = 6\nprint('six')\nx * 7"}),
        tool.call({"code": "x"}),
        tool.call({"code": "pass"}),
        tool.call({"code": "import os; os.kill(os.getpid(), 9)"}),
    )
    assert outputs[0] == "six\n42"
    assert outputs[1].endswith("NameError: name 'x' is not defined")
    assert "x\n" in outputs[1], "the line is shown"
    assert outputs[2:] == ["(no output)", "error: killed by signal 9"]


def test_its_definition(tool: Tool) -> None:
    assert tool.definition["function"]["parameters"]["required"] == ["code"]
    assert tool.timeout_seconds is not None and tool.timeout_seconds > ARGS.sandbox_seconds


@pytest.mark.parametrize(
    ("killed_by", "stdout", "shown"),
    [
        ("time", "half\n", "half\nerror: killed after 10 seconds"),
        ("memory", "", "error: killed, it used more than 1024 MiB of memory"),
    ],
)
def test_what_ended_a_program_is_said(killed_by: str, stdout: str, shown: str) -> None:
    result = SandboxResult(
        stdout=stdout,
        stderr="",
        exit_code=-9,
        killed_by=killed_by,  # type: ignore[arg-type]
        truncated=False,
        seconds=10.0,
    )
    assert as_shown(result, Limits()) == shown


def test_of_much_the_beginning_and_the_end_are_shown() -> None:
    result = SandboxResult(
        stdout="",
        stderr="a" * 30_000 + "ValueError: the end",
        exit_code=1,
        killed_by=None,
        truncated=True,
        seconds=1.0,
    )
    shown = as_shown(result, Limits())
    assert shown.startswith("aaa") and shown.endswith("ValueError: the end")
    assert len(shown) < module.MOST_CHARACTERS + 100


def test_without_walls_there_is_no_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "why_unavailable", lambda: "no namespaces")
    with pytest.raises(ConfigError, match="no namespaces"):
        python_tool(ARGS)
