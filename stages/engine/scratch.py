"""What one engine's processes leave in the file system, kept together so that it can be removed,
however they die.

SGLang puts sockets into the temporary folder and a load table into /dev/shm, and removes neither
when it is killed. Each engine therefore gets a temporary folder of its own, which also lists its
shared-memory files. Its owner holds a lock on it for as long as it lives; a folder that nobody has
locked belongs to a run that was killed, and the next engine to start removes it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

PREFIX = "slipstream-engine-"
LOCK, SHARED = "owner.lock", "shared-memory.txt"
SHM = Path("/dev/shm")


class Scratch:
    """A folder of this engine alone. Making one removes what dead runs have left."""

    def __init__(self) -> None:
        sweep_stale(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        # another run swept it between the two lines: once more
        while (lock := _lock(self.path)) is None:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock: int | None = lock
        self._shared: set[Path] = set()

    def note_shared_memory(self, pids: Iterable[int]) -> None:
        """Writes down the files under /dev/shm that these processes have mapped now: later nobody
        can say whose they were."""
        new = {path for pid in pids for path in _mapped(pid)} - self._shared
        if new:
            self._shared |= new
            (self.path / SHARED).write_text("\n".join(map(str, sorted(self._shared))))

    def remove(self) -> None:
        """Removes the folder and the shared memory. The processes should be gone, or going."""
        for path in self._shared:
            path.unlink(missing_ok=True)
        self._shared.clear()
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def sweep_stale(folder: Path) -> None:
    """Removes what runs that were killed have left in the temporary folder and in /dev/shm."""
    for path in folder.glob(PREFIX + "*"):
        lock = _lock(path)
        if lock is None:
            continue
        try:
            listed = (path / SHARED).read_text().splitlines() if (path / SHARED).exists() else []
            for line in listed:
                if Path(line).parent == SHM:
                    Path(line).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _lock(path: Path) -> int | None:
    """An open, locked file; None when another process has it, or may have, or the folder is not
    ours."""
    try:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _mapped(pid: int) -> set[Path]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    paths = {Path(line[line.find("/") :].strip()) for line in lines if "/dev/shm/" in line}
    return {path for path in paths if path.parent == SHM and path.exists()}
