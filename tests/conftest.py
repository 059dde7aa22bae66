"""Shared by all tests: run the entry as a user does, and see that nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest

from tests.flags import later_wins
from tests.shared_memory import SharedMemoryWatch

ROOT = Path(__file__).resolve().parents[1]
if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are shared; before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile(
    "slipstream", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("slipstream")

_watch = pytest.StashKey[SharedMemoryWatch]()


def pytest_sessionstart(session: pytest.Session) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        session.config.stash[_watch] = SharedMemoryWatch()
        session.config.stash[_watch].start()


@pytest.hookimpl(trylast=True)  # behind the end of xdist's workers
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that leaves a shared-memory file of its own behind has failed.

    Not looked at test by test: another one's may be there meanwhile.
    """
    if _watch not in session.config.stash:
        return
    left = session.config.stash[_watch].end()
    if left:
        print(f"\nshared-memory files left behind: {', '.join(map(str, left))}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def entry_command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "train_async.py"), *later_wins(flags)]


def run_entry(*flags: str, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    """`train_async.py FLAGS`, to its end."""
    return subprocess.run(
        entry_command(*flags),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **env},
        check=False,
    )


def start_entry(*flags: str, new_session: bool = False) -> subprocess.Popen[str]:
    """`train_async.py FLAGS`, under way; what it says, errors too, is in its `stdout`."""
    return subprocess.Popen(
        entry_command(*flags),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=new_session,
    )


def read_until(process: subprocess.Popen[str], found: Callable[[str], object]) -> str:
    """What it says up to the first line that is `found`. One that ends before has failed."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found(line):
            return "".join(lines)
    raise AssertionError("".join(lines))


def run_module(module: str, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """`python -m module words`, in the repository."""
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def read_metrics(run_dir: Path, kind: str | None = None) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [r for r in rows if kind is None or r["kind"] == kind]


def num_trained(run_dir: Path) -> int:
    """Rollouts, by the records of a run that may not have begun to write them."""
    return len(read_metrics(run_dir, "train")) if (run_dir / "metrics.jsonl").exists() else 0


@pytest.fixture
def nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails when the test leaves a process of ours: one that inherits this test's mark in its
    environment."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("SLIPSTREAM_TEST", mark)
    yield
    left = [p for p in psutil.process_iter() if p.pid != os.getpid() and _is_marked(p, mark)]
    assert not left, f"processes left behind: {[' '.join(p.cmdline())[:200] for p in left]}"


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return (
            process.status() != psutil.STATUS_ZOMBIE
            and process.environ().get("SLIPSTREAM_TEST") == mark
        )
    except psutil.Error:
        return False  # gone, or not ours to look at
