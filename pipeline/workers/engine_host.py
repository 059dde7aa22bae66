"""What runs in the process of an engine's host: a Ray actor on the engine's node that starts SGLang
as its subprocess, watches it, and takes it along when it goes.

The kernel ends the subprocess when the host's process ends, however it ends
(stages/engine/serve.py); what it left in the file system then is removed by the next engine that
starts on the node, or by the run when it closes (stages/engine/scratch.py)."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.core.ports import free_port
from pipeline.workers.pools import Where, interface_of, whereabouts
from stages.engine.launch import Engine
from stages.engine.scratch import sweep_stale
from stages.engine.spec import EngineSpec, engine_cpus

# Ray gives its workers as many OpenMP threads as CPUs that they asked for; an engine's own are its
# business.
_RAYS_OWN = ("OMP_NUM_THREADS",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One node's share of an engine."""

    spec: EngineSpec
    first_core: int | None  # --cpu-affinity: how many cores of the node others have
    width: int  # how many cores it takes then


class EngineHost:
    """The actor. Its methods run on one event loop."""

    def __init__(self, kept: dict[str, str]) -> None:
        """`kept`: the driver's values of variables that Ray sets for its workers."""
        for name in _RAYS_OWN:
            os.environ.pop(name, None)
        os.environ.update(kept)
        self._engine: Engine | None = None

    async def where(self) -> Where:
        return whereabouts()

    async def free_port(self, address: str) -> int:
        return free_port(host=address)

    async def start(self, share: Share, weight_version: int, timeout_seconds: float) -> str:
        """Starts the engine, again at the address it had; returns its endpoint when it takes
        requests. Raises EngineError with the end of its log."""
        interface = interface_of(share.spec.host)
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        if self._engine is None:
            self._engine = Engine(_pinned(share))
        else:
            self._engine.spec = _pinned(share)
        await self._engine.start(weight_version, timeout_seconds)
        return self._engine.endpoint

    async def ended(self) -> tuple[str, str]:
        """Returns when the engine's process has ended: how, and the end of its log."""
        assert self._engine is not None
        how = await self._engine.ended()
        return how, self._engine.log_tail()

    async def log_tail(self) -> str:
        return self._engine.log_tail() if self._engine is not None else ""

    async def run(self, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Calls a function of a module, on a thread."""
        return await asyncio.to_thread(work, *args)

    async def kill(self) -> None:
        if self._engine is not None:
            self._engine.kill()

    async def stop(self) -> None:
        """Ends the engine, and sweeps up what dead engines have left on this node."""
        if self._engine is not None:
            await self._engine.stop()
        sweep_stale(Path(tempfile.gettempdir()))


def _pinned(share: Share) -> EngineSpec:
    if share.first_core is None:
        return share.spec
    cores = sorted(os.sched_getaffinity(0))
    return replace(share.spec, cpus=engine_cpus(share.first_core, share.width, cores))


def kept_environment() -> dict[str, str]:
    """The driver's values of the variables that Ray sets for its workers."""
    return {name: os.environ[name] for name in _RAYS_OWN if name in os.environ}


def remote_host(options: dict[str, Any], environment: dict[str, str]) -> Any:
    """A host, on the bundle that `options` say."""
    import ray

    remote = ray.remote(max_restarts=0, max_task_retries=0)(EngineHost)
    return remote.options(**options, runtime_env={"env_vars": environment}).remote(
        kept_environment()
    )
