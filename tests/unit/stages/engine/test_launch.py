"""Real processes, with a small HTTP server in SGLang's place."""

from __future__ import annotations

import asyncio
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from pipeline.core.errors import EngineError
from pipeline.core.ports import free_port
from stages.engine.launch import Engine, is_resource_tracker
from stages.engine.scratch import Scratch
from tests.script_engine import SERVE, SERVER, ScriptSpec, gone


@pytest.fixture
def spec(tmp_path: Path) -> ScriptSpec:
    return ScriptSpec(
        index=3,
        model_path=tmp_path,
        log_path=tmp_path / "logs" / "engine-3.log",
        device="cpu",
        dtype="float32",
        mark=tmp_path / f"slipstream-test-{os.getpid()}-{tmp_path.name}",
    )


def replaced(spec: ScriptSpec, script: str) -> ScriptSpec:
    import dataclasses

    return dataclasses.replace(spec, script=textwrap.dedent(script))


def exists(path: Path | str) -> bool:
    return Path(path).exists()


def appears(path: Path) -> None:
    while not path.exists():
        pass


async def test_it_starts_answers_and_leaves_nothing_behind(spec: ScriptSpec) -> None:
    engine = Engine(spec)
    await engine.start(0, 30.0)
    try:
        assert engine.alive
        assert await engine.healthy(deep=False)
        assert not await engine.healthy(deep=True)  # this one does not generate
        child, scratch = spec.mark.read_text().split()
        shared = Path(f"/dev/shm/{spec.mark.name}.shm")
        assert exists(shared) and exists(scratch) and not gone(int(child))
    finally:
        await engine.stop()
    assert not engine.alive and gone(int(child))
    assert not exists(shared) and not exists(scratch)
    assert not await engine.healthy(deep=False)
    await engine.stop()


async def test_it_comes_back_at_the_same_address(spec: ScriptSpec) -> None:
    engine = Engine(spec)
    await engine.start(0, 30.0)
    endpoint, first = engine.endpoint, spec.mark.read_text()
    engine.kill()
    await engine.start(0, 30.0)
    try:
        assert await engine.healthy(deep=False) and engine.endpoint == endpoint
        assert spec.mark.read_text() != first
    finally:
        await engine.stop()


async def test_one_that_does_not_come_up_shows_its_last_lines_and_a_hint(spec: ScriptSpec) -> None:
    script = """
        import sys
        for i in range(100): print("line", i)
        print("launch_server.py: error: unrecognized arguments: --no-such-thing", file=sys.stderr)
        sys.exit(2)
    """
    with pytest.raises(EngineError) as caught:
        await Engine(replaced(spec, script)).start(0, 30.0)
    said = str(caught.value)
    assert "engine 3" in said and "exit code 2" in said and str(spec.log_path) in said
    assert (
        "unrecognized arguments: --no-such-thing" in said and "check the --sglang-* flags" in said
    )
    assert "line 99" in said and "line 10\n" not in said


async def test_one_that_is_killed_while_it_starts_says_so(spec: ScriptSpec) -> None:
    with pytest.raises(EngineError, match="signal SIGKILL"):
        await Engine(replaced(spec, "import os; os.kill(os.getpid(), 9)")).start(0, 30.0)


async def test_one_that_is_never_ready_is_ended_at_the_deadline(spec: ScriptSpec) -> None:
    script = SERVER.replace('("/ready", "/model_info")', "()")
    engine = Engine(replaced(spec, script))
    with pytest.raises(EngineError, match=r"was not ready after 1\.5 s") as caught:
        await engine.start(0, 1.5)
    assert "--engine-start-timeout-seconds" in str(caught.value)
    assert not engine.alive
    assert not spec.mark.exists() or gone(int(spec.mark.read_text().split()[0]))
    assert not exists(f"/dev/shm/{spec.mark.name}.shm")


async def test_a_cancelled_start_leaves_no_process(spec: ScriptSpec) -> None:
    engine = Engine(replaced(spec, SERVER.replace('("/ready", "/model_info")', "()")))
    start = asyncio.create_task(engine.start(0, 60.0))
    await asyncio.to_thread(appears, spec.mark)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not engine.alive
    assert gone(int(spec.mark.read_text().split()[0]))


async def test_an_inner_port_that_was_taken_a_moment_later_costs_one_more_start(
    spec: ScriptSpec,
) -> None:
    fails_once = """
        import pathlib, sys
        tried = pathlib.Path(sys.argv[2] + ".tried")
        if not tried.exists():
            tried.touch()
            sys.exit("The server socket has failed to listen: EADDRINUSE, message: address already in use")
    """  # noqa: E501
    engine = Engine(replaced(spec, textwrap.dedent(fails_once) + SERVER))
    await engine.start(0, 30.0)
    try:
        assert await engine.healthy(deep=False)
    finally:
        await engine.stop()
    always = 'import sys; sys.exit("address already in use")'
    with pytest.raises(EngineError, match="another program took the port"):
        await Engine(replaced(spec, always)).start(0, 30.0)
    assert spec.log_path.read_text().count('sys.exit("address already in use")') == 2


async def test_a_taken_port_is_named(spec: ScriptSpec) -> None:
    first = Engine(spec)
    await first.start(0, 30.0)
    try:
        with pytest.raises(EngineError, match=f"port {first.port} is taken"):
            await Engine(spec, first.port).start(0, 30.0)
    finally:
        await first.stop()


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """The parent is killed without a chance to clean up."""
    parent = f"""
import os, subprocess, sys
script = "import time; print('up', flush=True); time.sleep(600)"
command = [sys.executable, {str(SERVE)!r}, str(os.getpid()), "-", sys.executable, "-c", script]
child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    child = int(done.stdout)
    for _ in range(10_000_000):
        if gone(child):
            return
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the engine outlived its parent")


def test_what_a_killed_run_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    shared = Path(f"/dev/shm/slipstream-test-{os.getpid()}-killed.shm")
    killed = f"""
import mmap, os
from stages.engine.scratch import Scratch
file = open({str(shared)!r}, "w+b"); file.truncate(4096)
mapped = mmap.mmap(file.fileno(), 4096)
Scratch().note_shared_memory([os.getpid()])
os.kill(os.getpid(), 9)
"""
    live = Scratch()
    assert subprocess.run([sys.executable, "-c", killed], timeout=60).returncode == -signal.SIGKILL
    assert shared.exists() and len(list(tmp_path.iterdir())) == 2
    other = Scratch()
    assert not shared.exists()
    assert set(tmp_path.iterdir()) == {live.path, other.path}  # those of the living stay
    live.remove()
    other.remove()
    assert not list(tmp_path.iterdir())


WITH_SEMAPHORE = (
    """
import multiprocessing, pathlib, sys
lock = multiprocessing.get_context("spawn").Lock()
pathlib.Path(sys.argv[2]).with_suffix(".semaphore").write_text(lock._semlock.name)
"""
    + SERVER
)


def semaphore_file(name: str) -> Path:
    return Path(f"/dev/shm/sem.{name.removeprefix('/')}")


async def test_semaphores_go_with_an_engine_whose_resource_tracker_was_killed_too(
    spec: ScriptSpec,
) -> None:
    """As when a scheduler of SGLang's dies: its server kills all of its children."""
    spec = replaced(spec, WITH_SEMAPHORE)
    others = multiprocessing.get_context("spawn").Lock()
    engine = Engine(spec)
    await engine.start(0, 30.0)
    semaphore = semaphore_file(spec.mark.with_suffix(".semaphore").read_text())
    assert exists(semaphore)
    members = engine._members()
    assert any(is_resource_tracker(pid) for pid in members)
    for pid in members:
        os.kill(pid, signal.SIGKILL)
    await engine.ended()
    assert exists(semaphore)
    await engine.stop()
    assert not exists(semaphore)
    assert exists(semaphore_file(others._semlock.name))


JUST_FORKED = """
import multiprocessing, os
from stages.engine.scratch import Scratch
lock = multiprocessing.get_context("spawn").Lock()
read, write = os.pipe()
if not (child := os.fork()):
    os.read(read, 1)
    os._exit(0)
scratch = Scratch()
scratch.note_shared_memory([child])
scratch.remove()
os.write(write, b"x")
os.waitpid(child, 0)
print(os.path.exists("/dev/shm/sem." + lock._semlock.name.removeprefix("/")))
"""


def test_what_its_owner_has_mapped_is_not_an_engines() -> None:
    """A child that is just being forked, and has run nothing of its own yet, has all of it too."""
    done = subprocess.run(
        [sys.executable, "-c", JUST_FORKED], timeout=60, capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stdout + done.stderr


def test_memory_that_the_learner_lends_is_not_the_engines() -> None:
    """An engine has it mapped for the time of a push, and may be killed then."""
    lent = Path(f"/dev/shm/torch_{os.getppid()}_{os.getpid()}_0")
    own = Path(f"/dev/shm/torch_{os.getpid()}_{os.getpid()}_0")
    scratch, maps = Scratch(), []
    try:
        for path in (lent, own):
            with path.open("w+b") as file:
                file.truncate(4096)
                maps.append(mmap.mmap(file.fileno(), 4096))
        scratch.note_shared_memory([os.getpid()])
        scratch.remove()
        assert exists(lent) and not exists(own)
    finally:
        lent.unlink(missing_ok=True)
        own.unlink(missing_ok=True)


def test_it_does_not_start_when_its_parent_is_gone_already() -> None:
    done = subprocess.run(
        [sys.executable, str(SERVE), "1", "-", sys.executable, "-c", "print('ran')"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")


def test_it_is_pinned_to_its_cores() -> None:
    core = min(os.sched_getaffinity(0))
    script = "import os; print(sorted(os.sched_getaffinity(0)))"
    command = [
        sys.executable,
        str(SERVE),
        str(os.getpid()),
        str(core),
        sys.executable,
        "-c",
        script,
    ]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        == f"[{core}]"
    )


def test_free_ports_leave_out_taken_ones() -> None:
    class Stuck:
        """Draws the same port nine times, then the next."""

        draws = iter([25001] * 9 + [25003])

        def choice(self, _: object) -> int:
            return next(self.draws)

    assert free_port([25001], rng=Stuck()) == 25003  # type: ignore[arg-type]


async def test_its_log_is_for_its_owner_alone(spec: ScriptSpec) -> None:
    """SGLang writes its options there, and a key is one of them."""
    engine = Engine(spec)
    await engine.start(0, 30.0)
    await engine.stop()
    assert spec.log_path.stat().st_mode & 0o077 == 0
