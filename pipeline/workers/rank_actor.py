"""What runs in the process of one learner rank: a thin shell around the rank and the sending side
of weight pushes."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import socket
from collections.abc import Awaitable, Sequence
from typing import Any

from pipeline.core.devices import has_gpu
from stages.learn.settings import LearnerSettings


def own_address() -> str:
    """This node's address as others reach it (no packet is sent)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # any address outside: the kernel picks the interface that leads there
        probe.connect(("198.51.100.1", 9))
        return str(probe.getsockname()[0])


def _backend(settings: LearnerSettings) -> Any:
    """The package of --train-backend: `load()` does the slow imports, `start_rank()` makes the
    rank."""
    return importlib.import_module(f"stages.learn.{settings.model.train_backend}")


class RankActor:
    """What runs in an actor's process: one learner rank and, on rank 0, the sending side of weight
    pushes."""

    def __init__(self, settings: LearnerSettings, rank: int, cores: Sequence[int] | None) -> None:
        self._settings, self._number, self._cores = settings, rank, cores
        self._rank: Any = None
        self._sender: Any = None
        self._store: Any = None

    def pid(self) -> int:
        return os.getpid()

    def warm_up(self) -> None:
        """Does the imports, which take most of the start, on all ranks at the same time."""
        self._pin()  # before torch starts its threads
        _backend(self._settings).load()
        if not has_gpu():
            import torch

            torch.set_num_threads(self._settings.cluster.cpu_threads_per_actor)

    def serve_store(self) -> tuple[str, int]:
        """On rank 0: opens the store at which the ranks meet. It listens on loopback when all of
        them are on this machine."""
        from stages.learn.rendezvous import serve_store

        host = "127.0.0.1" if self._settings.cluster.actor_num_nodes == 1 else own_address()
        self._store, port = serve_store(self._settings.num_ranks, host)
        return host, port

    def build(self, address: tuple[str, int] | None) -> tuple[int, int]:
        """(Its data-parallel rank, how many there are.)"""
        from stages.learn.rendezvous import join_store

        world = self._settings.num_ranks
        if address is not None and self._store is None:
            self._store = join_store(*address, world)
        self._rank = _backend(self._settings).start_rank(
            self._settings, rank=self._number, world_size=world, store=self._store
        )
        return self._rank.dp_rank, self._rank.dp_size

    def _make_sender(self) -> Any:
        from stages.publish.sender import BroadcastSender

        return BroadcastSender(self._rank.hf_weights, self._rank.export_hf, self._rank.device)

    def _pin(self) -> None:
        """Keeps to its cores the thread that serves this call, and those that it starts."""
        if self._cores is not None:
            os.sched_setaffinity(0, self._cores)

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method of the rank; all ranks get the same calls in the same order."""
        return getattr(self._rank, method)(*args)

    def send(self, method: str, *args: Any) -> Any:
        """Calls a method of the sender (rank 0), which is made when first asked for. Those that
        only need what is prepared may be called beside a step, on another thread."""
        self._pin()
        self._sender = self._sender or self._make_sender()
        result = getattr(self._sender, method)(*args)
        return asyncio.run(awaited(result)) if inspect.isawaitable(result) else result

    def gather(self) -> None:
        """The other ranks' part in `prepare`: the collectives that bring whole tensors to rank
        0."""
        for _ in self._rank.hf_weights():
            pass


async def awaited(result: Awaitable[Any]) -> Any:
    return await result
