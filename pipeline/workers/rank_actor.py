"""What runs in the process of one learner rank: a thin shell around the rank and the sending side
of weight pushes."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from pipeline.core.devices import has_gpu
from pipeline.core.errors import ConfigError
from pipeline.workers.pools import Where, interface_of, whereabouts
from stages.learn.settings import LearnerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Which rank an actor is, and how it is reached by others."""

    rank: int
    address: str  # loopback where the whole run is on one node
    cores: tuple[int, int] | None = None  # --cpu-affinity: (first core of the node, how many)


def _backend(settings: LearnerSettings) -> Any:
    """The package of --train-backend: `load()` does the slow imports, `start_rank()` makes the
    rank."""
    return importlib.import_module(f"stages.learn.{settings.model.train_backend}")


class RankActor:
    """What runs in an actor's process: one learner rank and its side of weight pushes."""

    def __init__(self, settings: LearnerSettings) -> None:
        self._settings, self._seat = settings, Seat(rank=0, address="127.0.0.1")
        self._cores: list[int] | None = None  # --cpu-affinity: those it keeps to
        self._rank: Any = None
        self._sender: Any = None
        self._delta: Any = None  # its other one, of --weight-transport delta
        self._lender: Any = None
        self._store: Any = None

    def where(self) -> Where:
        return whereabouts()

    def take_seat(self, seat: Seat) -> None:
        """Before torch is loaded, which reads interfaces and starts threads once."""
        self._seat = seat
        interface = interface_of(seat.address)
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        if seat.cores is None:
            return
        free, (first, width) = sorted(os.sched_getaffinity(0)), seat.cores
        if len(free) < first + width:
            raise ConfigError(
                f"--cpu-affinity: learner rank {seat.rank} wants cores {first} to"
                f" {first + width - 1} of its node, which has {len(free)}"
            )
        self._cores = free[first : first + width]

    def warm_up(self) -> None:
        """Does the imports, which take most of the start, on all ranks at the same time."""
        self._pin()  # before torch starts its threads
        _backend(self._settings).load()
        if not has_gpu():
            import torch

            torch.set_num_threads(self._settings.cluster.cpu_threads_per_actor)

    def serve_store(self) -> tuple[str, int]:
        """On rank 0: opens the store at which the ranks meet."""
        from stages.learn.rendezvous import serve_store

        self._store, port = serve_store(self._settings.num_ranks, self._seat.address)
        return self._seat.address, port

    def build(self, address: tuple[str, int] | None) -> tuple[int, int]:
        """(Its data-parallel rank, how many there are.)"""
        from stages.learn.rendezvous import join_store

        world = self._settings.num_ranks
        if address is not None and self._store is None:
            self._store = join_store(*address, world)
        self._rank = _backend(self._settings).start_rank(
            self._settings, rank=self._seat.rank, world_size=world, store=self._store
        )
        return self._rank.dp_rank, self._rank.dp_size

    def _make_sender(self) -> Any:
        from stages.publish.sender import BroadcastSender

        rank = self._rank
        return BroadcastSender(
            rank.sent_weights,
            rank.export_hf,
            rank.device,
            rank.describe_sent,
            address=self._seat.address,
        )

    def _pin(self) -> None:
        """Keeps to its cores the thread that serves this call, and those that it starts."""
        if self._cores is not None:
            os.sched_setaffinity(0, self._cores)

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method of the rank; all ranks get the same calls in the same order."""
        return getattr(self._rank, method)(*args)

    def send(self, method: str, *args: Any) -> Any:
        """Calls a method of the sender, which is made when first asked for. Those that only need
        what is gathered may be called beside a step, on another thread."""
        self._pin()
        self._sender = self._sender or self._make_sender()
        result = getattr(self._sender, method)(*args)
        return asyncio.run(awaited(result)) if inspect.isawaitable(result) else result

    def send_delta(self, method: str, *args: Any) -> Any:
        """The same of the sender of changes (rank 0)."""
        self._pin()
        if self._delta is None:
            from stages.publish.delta_sender import DeltaSender

            self._delta = DeltaSender(self._rank.hf_weights)
        return getattr(self._delta, method)(*args)

    def lend(self, method: str, *args: Any) -> Any:
        """Calls a method of what lends this rank's memory to engines on its device."""
        self._pin()
        if self._lender is None:
            from stages.publish.lender import MemoryLender

            self._lender = MemoryLender(self._rank.hf_weights, self._rank.device)
        return getattr(self._lender, method)(*args)

    def gather(self) -> None:
        """The other ranks' part in `export_delta`: the collectives that bring whole tensors to
        rank 0."""
        for _ in self._rank.hf_weights():
            pass


async def awaited(result: Awaitable[Any]) -> Any:
    return await result
