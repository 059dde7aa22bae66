"""The Ray cluster that learner and engines live in: one that is joined, or one of the run's own.

A cluster of the run's own is private to it: it listens on loopback only, asks for a token of its
own, keeps its files in a temporary folder and is gone at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from configs.schema import ClusterConfig
from pipeline.core.errors import ClusterError
from pipeline.schedule.placement import Node
from stages.engine.launch import is_resource_tracker

logger = logging.getLogger(__name__)
REMOVE_ATTEMPTS = 20
STOP_SECONDS = 10.0  # for Ray's processes to go before they are killed
LOG_SECONDS = 5  # for Ray to say what a process wrote
GONE_SECONDS = 2.0  # for killed ones to be gone
# Ray reads these when it is imported or started. The second makes it use the loopback address, as
# it does on a Mac.
_LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def ray_address(cluster: ClusterConfig) -> str | None:
    """Of the cluster to join: --ray-address, else what Ray's own tools look for (a job that was
    submitted to a cluster has it set)."""
    return cluster.ray_address or os.environ.get("RAY_ADDRESS") or None


class RayCluster:
    """One cluster. Every method blocks: call it in a thread."""

    def __init__(
        self, address: str | None, *, devices: int, on_gpu: bool, object_store_bytes: int
    ) -> None:
        """`address`: of the cluster to join; None starts one on this machine, with so many devices
        (GPUs, or logical slots) and an object store of so many bytes."""
        self._address, self._devices, self._on_gpu = address, devices, on_gpu
        self._object_store_bytes = object_store_bytes
        self.folder: Path | None = None  # of a cluster of our own, once it is started

    @property
    def is_own(self) -> bool:
        """Does this run start it, and end it?"""
        return self._address is None

    def nodes(self) -> list[Node]:
        """The nodes that are alive now, with what is free on each.

        Ray's public interface tells what nodes have, not what of it is taken."""
        import ray

        here = ray.get_runtime_context().get_node_id()
        free = ray._private.state.available_resources_per_node()
        device = "GPU" if self._on_gpu else "CPU"
        return [
            Node(
                id=node["NodeID"],
                address=node["NodeManagerAddress"],
                devices=int(node["Resources"].get(device, 0)),
                free=int(free.get(node["NodeID"], {}).get(device, 0)),
                is_driver=node["NodeID"] == here,
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def num_gpus(self) -> float:
        """How many GPUs its nodes have together, used or not."""
        import ray

        return float(ray.cluster_resources().get("GPU", 0))

    def start(self) -> None:
        """Raises ClusterError when Ray runs in this process already, or does not start."""
        if self._address is None:
            os.environ.update(_LOCAL_ENVIRONMENT)
            # Ray reads it once a process
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        imported_before = "ray" in sys.modules  # by a user's file, say
        import ray

        if imported_before and self._address is None:
            _read_environment_again()
        if ray.is_initialized():
            raise ClusterError(
                "Ray is already running in this process: one run at a time, close the other first"
            )
        logging.getLogger("ray").setLevel(logging.ERROR)
        options: dict[str, Any] = {
            "logging_level": "error",
            "log_to_driver": False,
            "configure_logging": False,
        }
        if self._address is None:
            self.folder = Path(tempfile.mkdtemp(prefix="slipstream-"))
            options |= self._local_options(self.folder)
        else:
            options["address"] = self._address
        try:
            with _beside_our_process_group():
                ray.init(**options)
        except (
            RuntimeError,
            ConnectionError,
            ValueError,
            OSError,
            ray.exceptions.RayError,
        ) as error:
            raise ClusterError(f"Ray did not start: {type(error).__name__}: {error}") from error

    def _local_options(self, folder: Path) -> dict[str, Any]:
        return {
            "num_cpus": self._devices,
            "num_gpus": self._devices if self._on_gpu else 0,
            "include_dashboard": False,
            # batches pass through it; larger ones go over the disk
            "object_store_memory": self._object_store_bytes,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": str(folder),
            "_system_config": {
                "enable_worker_prestart": False,
                "prestart_worker_first_driver": False,
                "enable_metrics_collection": False,
                # Ray's 15 starves the learner where it shares cores with engines
                "worker_niceness": 0,
            },
        }

    def stop(self, pids: Collection[int]) -> None:
        """Leave a cluster that was joined; end one of our own, with all that runs on it. `pids`: of
        processes on it, which are ended even where Ray itself is gone."""
        import ray

        ours = self._processes(pids)
        if ray.is_initialized():
            ray.shutdown()
        _, stuck = psutil.wait_procs(ours, timeout=STOP_SECONDS)
        _kill(stuck)
        self._remove_folder()

    def kill_now(self, pids: Collection[int]) -> None:
        """End every process of ours on this machine at once, without asking any of them.

        Python's resource trackers are left to remove the semaphores of those that are gone, and
        end."""
        ours = [p for p in self._processes(pids) if not is_resource_tracker(p.pid)]
        _kill(ours)
        psutil.wait_procs(ours, timeout=GONE_SECONDS)
        self._remove_folder()

    def _processes(self, pids: Collection[int]) -> list[psutil.Process]:
        """Ray's own processes and those it started, of a cluster of our own: all that name its
        folder, and their children."""
        if self.folder is None:
            return []
        found: dict[int, psutil.Process] = {}
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if str(self.folder) in " ".join(child.cmdline()) or child.pid in pids:
                    found |= {p.pid: p for p in [child, *child.children(recursive=True)]}
        return list(found.values())

    def _remove_folder(self) -> None:
        """Tries again where a process that is just going was still writing into it."""
        if self.folder is None:
            return
        for _ in range(REMOVE_ATTEMPTS):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                return
            time.sleep(0.1)
        logger.warning("%s could not be removed", self.folder)

    def temporary_environment(self) -> dict[str, str]:
        """The environment that gives the ranks a temporary folder of their own, gone with the
        cluster's: ranks are killed at the end, and what their libraries made (W&B two folders at
        its import) would stay. What is compiled is kept for the next run."""
        if self.folder is None:
            return {}
        own = self.folder / "tmp"
        own.mkdir(exist_ok=True)
        compiled = f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
        return {
            "TMPDIR": str(own),
            "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", compiled),
        }

    def last_lines(self, pid: int, node: str, count: int = 8) -> list[str]:
        """What the process of this number on this node (Ray's id) wrote last. On a cluster that is
        joined Ray's dashboard has it; nothing where that does not run."""
        if self.folder is None:
            lines = _told(pid, node, 4 * count)
        else:
            logs = sorted(self.folder.glob(f"session_latest/logs/worker-*-{pid}.err"))
            lines = [s for log in logs for s in log.read_text(errors="replace").splitlines()]
        return [s for s in lines if s.strip() and not s.startswith(":")][-count:]


def end_actor(actor: Any) -> None:
    """Kills it. Where Ray is gone so is the actor: asked then, Ray would start a cluster first."""
    import ray

    if not ray.is_initialized():
        return
    with contextlib.suppress(Exception):  # it is gone, or the cluster is
        ray.kill(actor)


def _told(pid: int, node: str, count: int) -> list[str]:
    """The end of what a process wrote to its standard error, by Ray's interface to its logs."""
    from ray.util.state import get_log

    try:
        parts = get_log(
            node_id=node, pid=pid, suffix="err", tail=count, timeout=LOG_SECONDS, errors="replace"
        )
        return "".join(parts).splitlines()
    except Exception as error:  # the log of a failure must not hide it
        logger.debug("no log of process %s on node %s: %s", pid, node, error)
        return []


def _read_environment_again() -> None:
    """What `import ray` reads of the environment, which we have changed since."""
    from ray._private import ray_constants
    from ray._raylet import Config

    Config.initialize("")
    ray_constants.ENABLE_RAY_CLUSTER = False


def take_sigterm_back() -> None:
    """Ray's own handler, under Python's, prints a stack and aborts the process three seconds after
    a SIGTERM, whatever is being saved and closed then."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        signal.siginterrupt(signal.SIGTERM, False)  # as an event loop has it


@contextlib.contextmanager
def _beside_our_process_group() -> Iterator[None]:
    """Ray's processes are started in groups of their own. A SIGTERM to the run's whole group, as
    `timeout` and batch systems send it, would end them at once, while the run needs them to finish
    its step, save and close. (They still die with the run, by Ray's PR_SET_PDEATHSIG.)"""
    from ray._private import services

    popen = services.ConsolePopen
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
