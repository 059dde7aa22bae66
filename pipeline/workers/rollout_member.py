"""One rollout worker, as the driver deals with it: what it was told, and what it still owes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.workers.ray_cluster import end_actor
from pipeline.workers.rollout_messages import Delivery, Order, Report

if TYPE_CHECKING:
    from stages.engine.view import PoolView

GATHER_SECONDS = 0.01  # after a message, for what goes with the next: each costs half a millisecond
LAST_LINES = 8  # of its log, where it died


class Member:
    """Raises what Ray raises when the worker is dead (ray.exceptions.RayError)."""

    def __init__(
        self,
        number: int,
        launch: Callable[[int], Any],
        view: Callable[[], PoolView],
        cannot_send: Callable[[list[Order], Exception], None],
        log_path: Path | None,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        """`launch(number)` makes the actor. `cannot_send`: told of orders that do not pickle."""
        self.number, self._launch, self._view = number, launch, view
        self._cannot_send, self._log_path = cannot_send, log_path
        self._gather_seconds = gather_seconds
        self._actor: Any = None
        self.pid: int | None = None
        self._is_here = False  # is it on this node?
        self.alive = False  # started, and not known to be dead
        self.orders: dict[int, Order] = {}  # it owes these groups
        self._outbox: list[Order] = []
        self._known = -1  # the number of the view that it has
        self._sending: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return f"rollout worker {self.number}"

    async def start(self) -> None:
        """A new process, which owes nothing. Raises what the worker raises as it starts."""
        self.orders, self._outbox, self._known = {}, [], -1
        self._actor = self._launch(self.number)
        view = self._view()
        self.pid, host = await self._actor.start.remote(view)
        self._is_here = host == socket.gethostname()
        self._known, self.alive = view.number, True
        self.tell()

    def order(self, order: Order) -> None:
        self.orders[order.admission.group_index] = order
        self._outbox.append(order)
        self.tell()

    def tell(self) -> None:
        """Sends what is new: at once, or with the next message where one has just been sent."""
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(self._actor))

    async def _send(self, actor: Any) -> None:
        import ray

        while self._outbox or self._known < self._view().number:
            orders, self._outbox = self._outbox, []
            view = self._news()
            try:
                # Ray's own pickler asks Python about every object; a prompt is a dozen of them
                packed = pickle.dumps(orders, pickle.HIGHEST_PROTOCOL)
            except Exception as error:  # a user's source may have put anything into samples
                self._cannot_send(orders, error)
                continue
            try:
                await actor.begin.remote(packed, view)
            except ray.exceptions.RayError:
                return  # whoever collects hears of it
            self._knows(view)
            await asyncio.sleep(self._gather_seconds)

    async def collect(self) -> Delivery:
        delivery: Delivery = await self._actor.collect.remote()
        return delivery

    async def watch(self) -> Report:
        watch = self._actor.watch.options(concurrency_group="watch")
        report: Report = await watch.remote()
        return report

    async def checked(self, endpoint: str) -> None:
        view = self._news()
        await self._actor.checked.remote(endpoint, view)
        self._knows(view)

    async def drained(self, endpoint: str) -> None:
        view = self._news()
        await self._actor.drained.remote(endpoint, view)
        self._knows(view)

    async def close(self) -> None:
        await self._actor.close.remote()

    def kill(self, *, hard: bool = False) -> None:
        """`hard`: it would not hear of it. A process on this node is killed by its number then."""
        self.alive = False
        if self._sending is not None:
            self._sending.cancel()
        if self._actor is not None:
            end_actor(self._actor)
        if hard and self._is_here and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def last_lines(self) -> str:
        """What it printed last, for an error message; nothing where that is on another node."""
        if self._log_path is None or not self._log_path.is_file():
            return ""
        lines = [s for s in self._log_path.read_text(errors="replace").splitlines() if s.strip()]
        return "; its last lines:\n  " + "\n  ".join(lines[-LAST_LINES:]) if lines else ""

    def _news(self) -> PoolView | None:
        view = self._view()
        return view if view.number > self._known else None

    def _knows(self, view: PoolView | None) -> None:
        if view is not None:
            self._known = max(self._known, view.number)
