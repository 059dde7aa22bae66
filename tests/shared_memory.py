"""Which files under /dev/shm are ours: those that a process of ours had open or mapped, and that
our user owns. The machine may be shared, and strangers' files come and go there meanwhile."""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path

import psutil

SHM = Path("/dev/shm")
MARK = "SLIPSTREAM_TESTS"  # in the environment of every process of ours
POLL_SECONDS = 0.5


class SharedMemoryWatch:
    """Looks at every process that carries the mark, again and again: a file does not say who made
    it, and its maker may be gone when it is found. What lives shorter than between two looks is
    missed; a stranger's is never taken for ours."""

    def __init__(self, mark: str | None = None) -> None:
        """Processes that are started from now on carry the mark."""
        self._before = _files()
        self._mark = os.environ[MARK] = mark or uuid.uuid4().hex
        self._known: dict[tuple[int, float], bool] = {}
        self._ours: set[Path] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> list[Path]:
        """What was made since this watch, is ours, and is in nobody's use."""
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()
        self.look()
        left = self._ours & _files() - self._before
        return sorted(file for file in left if _is_mine(file) and not mapped_by_others(file))

    def look(self) -> None:
        for process in psutil.process_iter(["create_time"]):
            key = (process.pid, process.info["create_time"] or 0.0)
            if key not in self._known:
                self._known[key] = process.pid == os.getpid() or self._is_marked(process)
            if self._known[key]:
                self._ours |= _used_by(process.pid)

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self.look()

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self._mark
        except psutil.Error:
            return False  # gone, or not ours to look at


def mapped_by_others(file: Path) -> bool:
    """In use by a live process, which is none of ours: those are gone."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if str(file) in maps.read_text():
                return True
        except OSError:
            continue
    return False


def _files() -> set[Path]:
    return set(SHM.iterdir()) if SHM.exists() else set()


def _is_mine(file: Path) -> bool:
    try:
        return file.stat().st_uid == os.getuid()
    except OSError:
        return False


def _used_by(pid: int) -> set[Path]:
    links = Path(f"/proc/{pid}/fd")
    try:
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        places = [line[line.find("/") :] for line in maps if str(SHM) in line]
        places += [str(target) for link in links.iterdir() if (target := _target(link))]
    except OSError:
        return set()
    paths = {Path(place.removesuffix(" (deleted)")) for place in places}
    return {path for path in paths if path.parent == SHM}


def _target(link: Path) -> Path | None:
    try:
        return link.readlink()
    except OSError:
        return None  # closed meanwhile
