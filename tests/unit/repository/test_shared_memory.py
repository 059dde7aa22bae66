"""The check for shared memory that tests leave: ours is found, a stranger's is not."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.shared_memory import MARK, SHM, SharedMemoryWatch

MAKER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
os.ftruncate(fd, 4096)
held = mmap.mmap(fd, 4096)
if sys.argv[2] == "mapped":
    os.close(fd)
print("made", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not SHM.is_dir(), reason="this system has no /dev/shm")
@pytest.mark.parametrize("how", ["mapped", "open"])
@pytest.mark.parametrize("whose", ["ours", "strangers"])
def test_only_what_a_process_of_ours_made_counts(
    monkeypatch: pytest.MonkeyPatch, whose: str, how: str
) -> None:
    monkeypatch.setenv(MARK, os.environ.get(MARK, ""))  # given back at the end
    watch = SharedMemoryWatch()
    file = SHM / f"test-{uuid.uuid4().hex}"
    env = {**os.environ, **({MARK: "another's"} if whose == "strangers" else {})}
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(file), how],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert maker.stdout is not None and maker.stdout.readline() == "made\n"
        watch.look()
        maker.communicate("")
        assert watch.end() == ([file] if whose == "ours" else [])
    finally:
        maker.kill()
        file.unlink(missing_ok=True)
    assert watch.end() == [], "what is removed is not left"


def test_what_was_there_before_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, os.environ.get(MARK, ""))
    file = SHM / f"test-{uuid.uuid4().hex}"
    file.touch()
    try:
        watch = SharedMemoryWatch()
        with file.open():
            watch.look()
        assert Path(file) not in watch.end()
    finally:
        file.unlink()
