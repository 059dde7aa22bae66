"""The processes of a run, by what they are, and all that it ever had."""

from __future__ import annotations

import psutil


class Victims:
    def __init__(self, driver: int) -> None:
        """`driver`: its pid."""
        self._driver = psutil.Process(driver)
        self._seen: set[psutil.Process] = set()

    def look(self) -> list[psutil.Process]:
        """Its processes now; `alive` knows those that were looked at."""
        try:
            now = self._driver.children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._seen.update(now)
        return now

    def alive(self) -> list[psutil.Process]:
        """Which of all that were seen are there still."""
        _, alive = psutil.wait_procs(self._seen, timeout=5)
        return [p for p in alive if _is_there(p)]

    def hosts(self) -> list[psutil.Process]:
        """The Ray actors that host engines."""
        return self._titled("EngineHost")

    def workers(self) -> list[psutil.Process]:
        """The Ray actors that make groups."""
        return self._titled("RolloutWorker")

    def ranks(self) -> list[psutil.Process]:
        """The Ray actors that are the learner's ranks."""
        return self._titled("RankActor")

    def servers(self) -> list[psutil.Process]:
        """The SGLang servers, which the hosts have started."""
        return [child for host in self.hosts() for child in host.children()]

    def schedulers(self) -> list[psutil.Process]:
        """SGLang's processes that generate."""
        below = [child for server in self.servers() for child in server.children()]
        return [child for child in below if "scheduler" in _title(child)]

    def _titled(self, word: str) -> list[psutil.Process]:
        return [p for p in self.look() if f"ray::{word}" in _title(p)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it is just dying
        return ""


def _is_there(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
