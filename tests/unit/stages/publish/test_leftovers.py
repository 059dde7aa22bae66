"""Shared memory of processes that were killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from stages.publish.leftovers import remove_shared_memory


def test_what_dead_processes_made_is_removed_and_nothing_else() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = Path(f"/dev/shm/torch_{ended.pid}_1_0")
    alive = Path(f"/dev/shm/torch_{os.getpid()}_1_0")
    others = Path(f"/dev/shm/torch_{ended.pid}0_1_0")
    try:
        for path in (dead, alive, others):
            path.write_bytes(b"x")
        remove_shared_memory([ended.pid, os.getpid()])
        assert not dead.exists() and alive.exists() and others.exists()
    finally:
        for path in (dead, alive, others):
            path.unlink(missing_ok=True)
