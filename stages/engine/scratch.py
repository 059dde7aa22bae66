"""What one engine's processes leave in the file system, kept together so that it can be removed,
however they die.

SGLang puts sockets into the temporary folder and a load table into /dev/shm, and removes neither
when it is killed. Each engine therefore gets a temporary folder of its own, which also lists its
shared-memory files. Its owner holds a lock on it for as long as it lives; a folder that nobody has
locked belongs to a run that was killed, and the next engine to start removes it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Collection
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

    def note_shared_memory(self, pids: Collection[int]) -> None:
        """Writes down the files under /dev/shm that these processes have mapped now: later nobody
        can say whose they were. Semaphores are among them: Python's resource tracker removes those
        of killed processes, unless it is killed itself, as SGLang does with all its children when
        one has died. What this process has mapped too is its own: a child that is just being
        forked still has all of its parent's."""
        numbers = {number for pid in pids for number in _mapped(pid)}
        if os.getpid() not in pids:
            numbers -= _mapped(os.getpid())
        files = _files() if numbers else {}
        mapped = {files[number] for number in numbers & files.keys()}
        new = {path for path in mapped if not _is_lent(path, pids)} - self._shared
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


def _mapped(pid: int) -> set[tuple[int, int]]:
    """(device, inode) of the files under /dev/shm that a process has mapped.

    By number, since whoever makes a semaphore maps it under another name, which is gone by the time
    the file has its own (glibc's sem_open)."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    found = set()
    for line in lines:
        if "/dev/shm/" in line:
            _, _, _, device, inode, *_ = line.split(maxsplit=5)
            major, minor = (int(part, 16) for part in device.split(":"))
            found.add((os.makedev(major, minor), int(inode)))
    return found


def _files() -> dict[tuple[int, int], Path]:
    """What lies under /dev/shm now, by (device, inode)."""
    out = {}
    with contextlib.suppress(OSError):
        for path in SHM.iterdir():
            with contextlib.suppress(OSError):  # gone meanwhile
                stat = path.stat()
                out[stat.st_dev, stat.st_ino] = path
    return out


def _is_lent(path: Path, pids: Collection[int]) -> bool:
    """Was it made by torch in a process that is none of these? The learner's, say, which lends it
    for the time of a push (stages/publish/handles.py)."""
    match = re.fullmatch(r"torch_(\d+)_.*", path.name)
    return match is not None and int(match[1]) not in pids
