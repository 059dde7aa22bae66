"""The learner's ranks as Ray actors, and the driver's handle on them.

Ray is used for what it is good at: placing processes (on GPUs, on other nodes), carrying batches,
noticing deaths. On one machine the cluster is private to the run: loopback only, with a token of
its own, in a temporary folder, gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import psutil

from pipeline.core.devices import has_gpu
from pipeline.core.errors import ConfigError, LearnerError, SlipstreamError, UserFunctionError
from pipeline.core.types import OptimizerStep, StepResult, TrainBatch
from pipeline.workers.rank_actor import RankActor, awaited
from stages.learn.settings import LearnerSettings

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
REMOVE_ATTEMPTS = 20
CLOSE_SECONDS = 10.0  # for ranks to leave their process groups before they are killed
# Read by Ray when it is imported or started. The second makes it use the loopback address, as it
# does on a Mac.
_LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class LearnerGroup:
    """All learner ranks. Implements `Learner` and `WeightSender`; every method is awaited without
    holding the event loop.

    A refused step raises the ranks' LearnerError and leaves them alive. A rank that dies or breaks
    raises LearnerError with its last lines at once, and takes the others with it: they would wait
    for it in a collective."""

    def __init__(self, settings: LearnerSettings) -> None:
        self._settings = settings
        self._actors: list[Any] = []
        self._pids: list[int] = []
        self._folder: Path | None = None
        self._starting: asyncio.Future[None] | None = None  # Ray, in a thread
        self._broken: str | None = None
        self._saving = False  # has a save begun that is not finished?

    # ---- life

    async def start(self) -> None:
        """Bring up Ray and the ranks, with the model loaded.

        Raises ConfigError, CheckpointError or LearnerError.
        """
        try:
            self._starting = asyncio.ensure_future(asyncio.to_thread(self._start_ray))
            await asyncio.shield(self._starting)
            _take_sigterm_back()
            self._actors = self._make_actors()
            self._pids = await self._all("pid")
            await self._all("warm_up")
            address = (
                (await self._on([self._actors[0]], "serve_store"))[0]
                if len(self._actors) > 1
                else None
            )
            await self._all("build", address)
        except BaseException:
            await asyncio.shield(self.close())
            raise

    def _start_ray(self) -> None:
        local = self._settings.cluster.ray_address is None
        if local:
            os.environ.update(_LOCAL_ENVIRONMENT)
            # Ray reads it once a process
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        import ray

        if ray.is_initialized():
            raise LearnerError(
                "Ray is already running in this process: one learner group at a time, close the"
                " other first"
            )
        logging.getLogger("ray").setLevel(logging.ERROR)
        quiet: dict[str, Any] = {
            "logging_level": "error",
            "log_to_driver": False,
            "configure_logging": False,
        }
        if local:
            self._folder = Path(tempfile.mkdtemp(prefix="slipstream-"))
            quiet |= self._local_options(self._folder)
        else:
            quiet["address"] = self._settings.cluster.ray_address
        try:
            ray.init(**quiet)
        except (
            RuntimeError,
            ConnectionError,
            ValueError,
            OSError,
            ray.exceptions.RayError,
        ) as error:
            raise LearnerError(f"Ray did not start: {type(error).__name__}: {error}") from error

    def _local_options(self, folder: Path) -> dict[str, Any]:
        slots = self._settings.num_ranks
        return {
            "num_cpus": slots,
            "num_gpus": slots if _on_gpu(self._settings) else 0,
            "include_dashboard": False,
            # batches pass through it; larger ones go over the disk
            "object_store_memory": 256 << 20,
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

    def _make_actors(self) -> list[Any]:
        import ray

        cluster, gpu = self._settings.cluster, _on_gpu(self._settings)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {
            "PYTHONPATH": path,
            "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
            "PYTHONWARNINGS": "ignore",
        }
        if self._folder is not None:
            env |= _temporary(self._folder)
        if not gpu:
            env |= {
                "OMP_NUM_THREADS": str(cluster.cpu_threads_per_actor),
                "TORCHDYNAMO_DISABLE": "1",
                "CUDA_VISIBLE_DEVICES": "",
            }
            # a thread that spins for one without a core holds up both, and the engines
            env |= {"OMP_WAIT_POLICY": "PASSIVE"}
        remote = ray.remote(
            num_cpus=1, num_gpus=1 if gpu else 0, max_restarts=0, max_task_retries=0
        )(RankActor)
        cores = _cores(self._settings) if cluster.cpu_affinity and not gpu else None
        return [
            remote.options(runtime_env={"env_vars": env}).remote(
                self._settings, rank, cores[rank] if cores else None
            )
            for rank in range(self._settings.num_ranks)
        ]

    async def close(self) -> None:
        """Take everything down: ranks, Ray, its folder. From any state, and more than once."""
        if self._starting is not None:
            # a thread cannot be cancelled, and would make processes and files behind our back
            await asyncio.wait([self._starting])
        actors, self._actors = self._actors, []
        if actors and self._broken is None:
            refs = [a.call.remote("close") for a in actors]
            with contextlib.suppress(Exception):  # a rank that cannot close is killed below
                await asyncio.wait_for(asyncio.wait(map(_answer_to, refs)), CLOSE_SECONDS)
        self._broken = self._broken or "it is closed"
        await asyncio.to_thread(self._stop_ray)

    def _stop_ray(self) -> None:
        import ray

        ours = self._processes()
        if ray.is_initialized():
            ray.shutdown()
        _, stuck = psutil.wait_procs(ours, timeout=CLOSE_SECONDS)
        _kill(stuck)
        self._pids = []
        self._remove_folder()

    def kill_now(self) -> None:
        """End every process of ours on this machine at once, without waiting for anything."""
        _kill(self._processes())
        self._broken = "it was killed"
        self._remove_folder()

    def _processes(self) -> list[psutil.Process]:
        """Ray's own processes and the ranks, as far as this group started them: all that name its
        folder, and their children."""
        if self._folder is None:
            return []
        found: dict[int, psutil.Process] = {}
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if str(self._folder) in " ".join(child.cmdline()) or child.pid in self._pids:
                    found |= {p.pid: p for p in [child, *child.children(recursive=True)]}
        return list(found.values())

    def _remove_folder(self) -> None:
        """Again where a process that is just going was still writing into it."""
        if self._folder is None:
            return
        for _ in range(REMOVE_ATTEMPTS):
            shutil.rmtree(self._folder, ignore_errors=True)
            if not self._folder.exists():
                return
            time.sleep(0.1)
        logger.warning("%s could not be removed", self._folder)

    # ---- Learner

    async def step(self, batch: TrainBatch) -> StepResult:
        return StepResult(metrics=(await self._all("call", "step", batch))[0])

    async def sft_step(self, step: OptimizerStep, lr: float) -> dict[str, float]:
        """One supervised step at learning rate `lr`; see MegatronRank.sft_step."""
        return (await self._all("call", "sft_step", step, lr))[0]

    async def reset_optimizer(self) -> None:
        """Forget Adam's moments and start the schedule anew (after a warm-up)."""
        await self._all("call", "reset_optimizer")

    async def offload(self) -> None:
        """Every rank gives its device up, until the next step."""
        await self._all("call", "offload")

    async def onload(self) -> None:
        await self._all("call", "onload")

    async def save(self, path: Path, hf: Path | None) -> None:
        target = _absolute(hf) if hf is not None else None
        if self._settings.config.run.async_save:
            await self._all("call", "begin_save", _absolute(path), target)
            self._saving = True
            return
        await self._all("call", "save", _absolute(path), target)

    async def saved(self, *, wait: bool) -> bool:
        if self._saving and (wait or all(await self._all("call", "save_written"))):
            self._saving = False
            await self._all("call", "finish_save")
        return not self._saving

    async def load(self, path: Path) -> None:
        await self._all("call", "load", _absolute(path))

    # ---- WeightSender

    async def join(
        self, group_name: str, address: str, port: int, world_size: int, backend: str
    ) -> None:
        await self._on(
            self._actors[:1], "send", "join", group_name, address, port, world_size, backend
        )

    async def leave(self, group_name: str) -> None:
        await self._on(self._actors[:1], "send", "leave", group_name)

    async def prepare(self, max_bucket_bytes: int) -> list[list[tuple[str, str, list[int]]]]:
        others = [a.gather.remote() for a in self._actors[1:]]
        first = [a.send.remote("prepare", max_bucket_bytes) for a in self._actors[:1]]
        return (await self._results([*first, *others]))[0]

    async def broadcast(self, group_name: str, bucket: int) -> None:
        await self._on(self._actors[:1], "send", "broadcast", group_name, bucket)

    async def export_hf(self, path: Path) -> None:
        await self._all("call", "export_hf", _absolute(path))

    # ---- calls

    async def _all(self, method: str, *args: Any) -> list[Any]:
        return await self._on(self._actors, method, *args)

    async def _on(self, actors: Sequence[Any], method: str, *args: Any) -> list[Any]:
        if self._broken:
            raise LearnerError(f"the learner cannot be used: {self._broken}")
        return await self._results([getattr(a, method).remote(*args) for a in actors])

    async def _results(self, refs: Sequence[Any]) -> list[Any]:
        """All results, or the first failure as soon as it is known."""
        tasks = [_answer_to(ref) for ref in refs]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            failed = next(
                ((i, e) for i, t in enumerate(tasks) if t.done() and (e := t.exception())), None
            )
            if failed is None:
                return [t.result() for t in tasks]
            raise await self._explain(*failed, tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _explain(
        self, rank: int, error: BaseException, tasks: Sequence[asyncio.Future[Any]]
    ) -> Exception:
        cause = getattr(error, "cause", None)
        if isinstance(cause, SlipstreamError) and not isinstance(cause, UserFunctionError):
            # Ranks agree on a refusal before they raise; wait for all, so that the next call finds
            # them idle.
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
            cause.add_note(f"on learner rank {rank}")
            return cause
        lines = self._last_lines(rank)
        self._broken = f"rank {rank} failed earlier"
        import ray

        for actor in self._actors:
            ray.kill(actor)
        if isinstance(cause, UserFunctionError):  # on this rank, on others perhaps not
            cause.add_note(f"on learner rank {rank}")
            return cause
        what = (
            f"failed: {type(cause).__name__}: {cause}"
            if cause is not None
            else f"died ({type(error).__name__})"
        )
        out = LearnerError(
            f"learner rank {rank} (pid {self._pids[rank] if self._pids else '?'}) {what}{lines}"
        )
        if cause is not None:
            out.__cause__ = cause  # a full disk is told by it
            out.add_note(str(error))  # the traceback on the rank
        return out

    def _last_lines(self, rank: int, count: int = 8) -> str:
        """What the rank wrote last, for the error message."""
        if not (self._folder and self._pids):
            return ""
        logs = sorted(self._folder.glob(f"session_latest/logs/worker-*-{self._pids[rank]}.err"))
        lines = [
            s
            for log in logs
            for s in log.read_text(errors="replace").splitlines()
            if s.strip() and not s.startswith(":")
        ]
        return "; its last lines:\n  " + "\n  ".join(lines[-count:]) if lines else ""


def _take_sigterm_back() -> None:
    """Ray's own handler, under Python's, prints a stack and aborts the process three seconds after
    a SIGTERM, whatever is being saved and closed then."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        signal.siginterrupt(signal.SIGTERM, False)  # as an event loop has it


def _temporary(folder: Path) -> dict[str, str]:
    """A temporary folder of the ranks' own, gone with `folder`: ranks are killed at the end, and
    what their libraries made (W&B two folders at its import) would stay. What is compiled is kept
    for the next run."""
    own = folder / "tmp"
    own.mkdir(exist_ok=True)
    compiled = f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
    return {
        "TMPDIR": str(own),
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", compiled),
    }


def _answer_to(call: Awaitable[Any]) -> asyncio.Future[Any]:
    """Of several ranks that fail, the first is told; asyncio shall not complain that the others'
    errors were never looked at."""
    task = asyncio.ensure_future(awaited(call))
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def _absolute(path: Path) -> Path:
    """Ranks have a working directory of their own."""
    return path.absolute()


def _on_gpu(settings: LearnerSettings) -> bool:
    return has_gpu() if settings.model.device == "auto" else settings.model.device == "cuda"


def _cores(settings: LearnerSettings) -> list[list[int]]:
    """The first cores of this machine for the learner, `cpu_threads_per_actor` each; engines take
    those behind."""
    free, each = sorted(os.sched_getaffinity(0)), settings.cluster.cpu_threads_per_actor
    if len(free) < settings.num_ranks * each:
        raise ConfigError(
            f"--cpu-affinity: {settings.num_ranks} learner ranks x {each} threads, but {len(free)}"
            " cores"
        )
    return [free[r * each : (r + 1) * each] for r in range(settings.num_ranks)]


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
