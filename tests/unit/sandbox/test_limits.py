"""A program that wants more than its limits: it alone ends, and the owner holds no more for it."""

import asyncio

import pytest

from sandbox.limits import MIB, Limits
from sandbox.pool import Sandbox
from tests.unit.sandbox.conftest import SMALL

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(1e6)",
        "while True: pass",
        "import signal\nfor n in range(1, 65):\n"
        "    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "while True: pass",
        "import os\nos.fork()\nos.setsid() if os.getpid() > 2 else 0\nwhile True: pass",
        "10 ** 10 ** 10",
        "import threading\nthreading.Thread(target=threading.Event().wait).start()",
    ],
)
async def test_time(small: Sandbox, code: str) -> None:
    result = await small.run(f"print('began')\n{code}", seconds=0.2)
    assert (result.killed_by, result.timed_out, result.ok) == ("time", True, False)
    assert result.stdout == "began\n"  # what it said is not lost
    assert (await small.run("print(2)")).stdout == "2\n"


async def test_a_program_may_ask_for_less_time_only() -> None:
    async with Sandbox(Limits(seconds=0.2), num_workers=1) as sandbox:
        result = await sandbox.run("while True: pass", seconds=60.0)
    assert result.timed_out


async def test_memory_of_one_process(small: Sandbox) -> None:
    result = await small.run("x = bytearray(1 << 30)")
    assert result.exit_code == 1
    assert result.stderr.endswith("MemoryError\n")


async def test_memory_of_several_processes() -> None:
    """Each is within its own limit; the sum is what is looked at."""
    limits = Limits(memory_bytes=128 * MIB, seconds=60.0, processes=8)
    code = (
        "import os, time\nfor _ in range(4):\n    if not os.fork():\n"
        "        held = bytearray(64 << 20)\n        break\n"
        "time.sleep(1e6)"
    )
    async with Sandbox(limits, num_workers=1) as sandbox:
        result = await sandbox.run(code)
        assert (result.killed_by, result.exit_code) == ("memory", -9)
        assert (await sandbox.run("print(2)")).stdout == "2\n"


async def test_a_fork_bomb(small: Sandbox) -> None:
    bomb = (
        "import os, time\nnumber = 1\n"
        "try:\n    while os.fork(): number += 1\n    time.sleep(1e6)\n"
        "except BlockingIOError: print(number)"
    )
    assert (await small.run(bomb)).stdout == f"{SMALL.processes}\n"
    everywhere = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert (await small.run(everywhere, seconds=0.3)).killed_by == "time"
    assert (await small.run("print(2)")).stdout == "2\n"


async def test_threads_count_too(small: Sandbox) -> None:
    code = (
        "import threading\ngone = threading.Event()\nstarted = 0\n"
        "try:\n    for _ in range(100):\n"
        "        threading.Thread(target=gone.wait, daemon=True).start(); started += 1\n"
        "except RuntimeError: print(started)"
    )
    assert (await small.run(code)).stdout == f"{SMALL.processes - 1}\n"


async def test_the_disk_is_full_at_its_limit(small: Sandbox) -> None:
    code = (
        "written = 0\ntry:\n    for number in range(100):\n"
        "        file = open(f'/tmp/{number}', 'wb', 0)\n"
        "        written += file.write(bytes(1 << 20))\n"
        "except OSError as error: print(written >> 20, error.errno)"
    )
    assert (await small.run(code)).stdout == f"{SMALL.disk_bytes // MIB} 28\n"
    names = "for number in range(100_000): open(f'/tmp/{number}', 'w').close()"
    assert "No space left" in (await small.run(names)).stderr
    assert (await small.run("import os; print(os.listdir('/tmp'))")).stdout == "[]\n"


async def test_a_file_ends_at_its_limit(small: Sandbox) -> None:
    code = "open('/tmp/x', 'wb').truncate(1 << 30)"
    assert "File too large" in (await small.run(code)).stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_100_mb_of_output(small: Sandbox, stream: str) -> None:
    code = f"import sys\nfor _ in range(100): sys.{stream}.write('x' * (1 << 20))"
    result = await small.run(code)
    assert getattr(result, stream) == "x" * SMALL.output_bytes
    assert result.truncated
    assert result.exit_code == 1


async def test_output_is_what_it_is(small: Sandbox) -> None:
    code = "import os; os.write(1, b'\\xffa\\0b'); os.write(2, '\\u00e9'.encode())"
    result = await small.run(code)
    assert (result.stdout, result.stderr) == ("\ufffda\0b", "é")
    assert not result.truncated


async def test_calls_run_side_by_side_as_many_as_there_are_workers() -> None:
    """Two programs that each wait for the other by the clock cannot: so they sleep at once."""
    async with Sandbox(Limits(seconds=30.0), num_workers=3) as sandbox:
        codes = [f"import time; time.sleep({seconds})\nprint(1)" for seconds in (0.05, 0.1, 0.15)]
        results = await asyncio.gather(*(sandbox.run(code) for code in codes * 3))
        assert [result.stdout for result in results] == ["1\n"] * 9
        assert len(sandbox._idle) == 3


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0.0}, {"seconds": float("nan")}, {"memory_bytes": 1}, {"processes": 0}]
)
async def test_limits_that_nothing_can_keep_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)  # type: ignore[arg-type]
