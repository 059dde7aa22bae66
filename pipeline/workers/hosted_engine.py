"""An engine on any node of the cluster, as the pool sees it: its hosts are Ray actors, one a node;
requests go straight to its server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import psutil

from pipeline.core.engine_auth import engine_headers
from pipeline.core.errors import EngineError, NoRoomError, SlipstreamError
from pipeline.core.gpu_environment import alike
from pipeline.workers.engine_host import Share, remote_host
from pipeline.workers.pools import Berth, Pools, Where, actor_environment
from pipeline.workers.ray_cluster import end_actor
from stages.engine.launch import is_healthy
from stages.engine.spec import EngineSpec

logger = logging.getLogger(__name__)
T = TypeVar("T")

HOST_SECONDS = 120.0  # for Ray to start a host's process
STOP_SECONDS = 20.0  # for a host to end its engine, before the host is ended itself
ANSWER_SECONDS = 10.0  # for a host to say that it is there, before it is replaced
LOOPBACK = "127.0.0.1"


class HostedEngine:
    """`stages.engine.slot.EngineProcess`."""

    def __init__(self, spec: EngineSpec, pools: Pools, *, cpu_affinity: bool = False) -> None:
        """`spec`: of the whole engine; where it is, is for `pools` to say."""
        self.spec = spec
        self.endpoint = f"engine {spec.index}, not started"
        self._pools, self._cpu_affinity = pools, cpu_affinity
        self._hosts: list[Any] = []
        self._where: list[Where] = []
        self._berths: list[Berth] = []
        self._here: list[psutil.Process] = []  # of the hosts, those on the driver's node
        self._alive = False
        self._tail = "(it is not started)"
        self._watching: asyncio.Task[None] | None = None
        self.on_death: Callable[[str], None] | None = None
        """Told the reason when it ends by itself."""

    @property
    def name(self) -> str:
        return f"engine {self.spec.index} ({self.endpoint})"

    @property
    def alive(self) -> bool:
        """Do its processes run, as far as their hosts have told?"""
        return self._alive

    async def start(self, weight_version: int, timeout_seconds: float) -> None:
        """Starts it, on other nodes where its own are gone, and returns when it takes requests.

        Raises EngineError with the end of its log, ConfigError where the run does not fit."""
        await self._unwatch()
        if not await self._hosts_answer():
            await self._make_hosts()
        shares = await self._shares()
        try:
            endpoints = await asyncio.wait_for(
                _all(
                    host.start.remote(share, weight_version, timeout_seconds)
                    for host, share in zip(self._hosts, shares, strict=True)
                ),
                2 * timeout_seconds + HOST_SECONDS,  # it keeps to its deadline itself, if it runs
            )
        except TimeoutError:
            raise EngineError(f"{self.name}: its host gave no answer; is it stopped?") from None
        except EngineError as error:
            self._tail = str(error)
            raise
        self.endpoint, self._alive = endpoints[0], True
        self._watching = asyncio.create_task(self._watch(), name=f"watch {self.name}")

    async def healthy(self, *, deep: bool) -> bool:
        """Does it answer? See Engine.healthy."""
        return self._alive and await is_healthy(
            self.endpoint, deep=deep, headers=engine_headers(self.spec.user)
        )

    def kill(self) -> None:
        """Tells the hosts to end its processes; does not wait for it."""
        self._alive = False
        for host in self._hosts:
            with contextlib.suppress(Exception):  # the host or the cluster is gone, and the engine
                host.kill.remote()

    async def stop(self) -> None:
        """Ends its processes and its hosts, and gives its room back. It may be called more than
        once."""
        await self._unwatch()
        self._alive = False
        await self._end_hosts(ask=True)

    def log_tail(self) -> str:
        """The last lines that its process wrote, as far as they are known here."""
        try:
            return "\n".join(self.spec.log_path.read_text(errors="replace").splitlines()[-25:])
        except OSError:  # another node's
            return self._tail

    async def on_nodes(self, work: Callable[..., Any], *args: Any) -> list[Any]:
        """See SGLangPool.on_nodes. The hosts do it."""
        if not self._hosts:
            raise EngineError(f"{self.name} has no host now")
        return await _all(host.run.remote(work, args) for host in self._hosts)

    # ---- hosts

    async def _hosts_answer(self) -> bool:
        if not self._hosts:
            return False
        try:
            tails = _all(host.log_tail.remote() for host in self._hosts)
            await asyncio.wait_for(tails, ANSWER_SECONDS)
        except (SlipstreamError, TimeoutError):  # dead, or stopped
            return False
        return True

    async def _make_hosts(self) -> None:
        await self._end_hosts(ask=False)
        had_room = bool(self._berths)
        if had_room and not await self._pools.move_engine(self.spec.index):
            raise NoRoomError(f"{self.name}: no node has room for it now")
        self._berths = await self._pools.engine_berths(self.spec.index)
        spec = self.spec
        on_gpu = spec.device == "cuda"
        environment = actor_environment(alike(os.environ, spec.user) if on_gpu else {})
        self._hosts = [remote_host(dict(b.options), environment) for b in self._berths]
        try:
            self._where = await asyncio.wait_for(
                _all(host.where.remote() for host in self._hosts), HOST_SECONDS
            )
        except TimeoutError:
            await self._end_hosts(ask=False)
            raise EngineError(
                f"{self.name}: Ray did not start its host within {HOST_SECONDS:g} s"
            ) from None
        for where, berth in zip(self._where, self._berths, strict=True):
            self._pools.note(where.pid)
            if berth.place.node.is_driver:
                with contextlib.suppress(psutil.NoSuchProcess):  # it is dead already
                    self._here.append(psutil.Process(where.pid))

    async def _end_hosts(self, *, ask: bool) -> None:
        hosts, self._hosts = self._hosts, []
        if not hosts:
            return
        if ask:
            stops = _all(host.stop.remote() for host in hosts)
            try:
                await asyncio.wait_for(stops, STOP_SECONDS)
            except (SlipstreamError, TimeoutError) as error:
                logger.warning("%s was not ended by its host: %s", self.name, error)
        for host in hosts:
            end_actor(host)
        self._kill_hosts_here()
        if ask:
            self._pools.leave(self.spec.index)

    def _kill_hosts_here(self) -> None:
        """Those on the driver's node, by their number: one that is stopped does not hear Ray, and
        its engine would live on at the address of the next."""
        here, self._here = self._here, []
        for process in here:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    async def _shares(self) -> list[Share]:
        """What each host is told."""
        spans = self._pools.spans_nodes
        hosts = [where.address if spans else LOOPBACK for where in self._where]
        meeting = None
        if len(self._hosts) > 1:
            (port,) = await _all([self._hosts[0].free_port.remote(hosts[0])])
            meeting = f"{hosts[0]}:{port}"
        return [
            self._share(rank, hosts[rank], meeting, await self._gpus(rank))
            for rank in range(len(self._hosts))
        ]

    def _share(self, rank: int, host: str, meeting: str | None, gpus: Sequence[str]) -> Share:
        place, spec = self._berths[rank].place, self.spec
        log = spec.log_path if rank == 0 else spec.log_path.with_suffix(f".node-{rank}.log")
        return Share(
            spec=replace(
                spec,
                log_path=log,
                host=host,
                cuda_devices=tuple(gpus),
                nnodes=len(self._hosts),
                node_rank=rank,
                dist_init_addr=meeting,
            ),
            first_core=place.first if self._cpu_affinity else None,
            width=spec.threads * place.devices,
        )

    async def _gpus(self, rank: int) -> Sequence[str]:
        if self.spec.device != "cuda":
            return ()
        place = self._berths[rank].place
        if place.rank is None:
            return self._where[rank].gpus
        return await self._pools.gpus_of(place)

    # ---- life and death

    async def _watch(self) -> None:
        """Waits for the first of its processes or hosts to end."""
        ends = [asyncio.ensure_future(_answer(host.ended.remote())) for host in self._hosts]
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            first = done.pop()
        finally:
            for end in ends:
                end.cancel()
        error = first.exception()
        if error is None:
            how, self._tail = first.result()
        else:
            how = f"lost its host: {error}"
        told, self._alive = self._alive, False
        if told and self.on_death is not None:  # else it was ended by us
            self.on_death(how)

    async def _unwatch(self) -> None:
        if self._watching is not None and self._watching is not asyncio.current_task():
            self._watching.cancel()
            await asyncio.wait([self._watching])
            self._watching = None


async def _all(calls: Any) -> list[Any]:
    """All answers of hosts, or the first failure."""
    return list(await asyncio.gather(*(_answer(call) for call in calls)))


async def _answer(call: Awaitable[T]) -> T:
    """A host's answer. What it raised is raised here; if it is gone, that is an EngineError."""
    import ray

    try:
        return await call
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, SlipstreamError):
            raise cause from None
        raise EngineError(f"an engine's host failed: {error}") from error
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise EngineError(f"an engine's host is gone ({type(error).__name__}: {first})") from error
