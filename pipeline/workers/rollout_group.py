"""All rollout workers, as the driver deals with them: who makes which group, who has died, what
they have in flight."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.core.errors import RolloutWorkerError, SlipstreamError
from pipeline.core.format import counted
from pipeline.core.types import Admission, Sample
from pipeline.run.group_maker import MadeGroup
from pipeline.run.watchdog import Watchdog
from pipeline.workers.ray_cluster import RayCluster, take_sigterm_back
from pipeline.workers.rollout_member import GATHER_SECONDS, Member
from pipeline.workers.rollout_messages import Broken, Delivery, Order
from pipeline.workers.rollout_reports import RolloutReports

if TYPE_CHECKING:
    from stages.engine.remote_pool import Suspicion
    from stages.engine.view import Elsewhere, PoolView

logger = logging.getLogger(__name__)
CLOSE_SECONDS = 5.0  # for workers to end what they have started before they are killed
SILENT_SECONDS = 60.0  # reports come every second, from a thread of their own


class LeasedPool(Protocol):
    """What the workers need of the driver's pool (stages/engine/pool.py)."""

    elsewhere: Elsewhere | None

    def view(self) -> PoolView: ...
    def count_elsewhere(self, who: str, in_flight: Mapping[str, int]) -> None: ...
    async def report_failure(self, endpoint: str, error: Exception) -> None: ...


class RolloutGroup:
    """Implements `MakeGroup`: a group is made by the worker that has the fewest. What a dead worker
    owed is made by another, under its old admission."""

    def __init__(
        self,
        launch: Callable[[int], Any],
        pool: LeasedPool,
        *,
        num_workers: int,
        max_restarts: int,
        log_path: Callable[[int], Path] | None = None,
        cluster: RayCluster | None = None,
        silent_seconds: float = SILENT_SECONDS,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        """`launch(number)`: makes a worker's actor. `max_restarts`: of all workers together.
        `cluster`: one of their own, where Ray does not run anyway. `silent_seconds`: without a
        report, after which a worker counts as dead."""
        self._silent_seconds = silent_seconds
        self._pool, self._cluster = pool, cluster
        self._max_restarts, self.num_restarts = max_restarts, 0
        self._members = [
            Member(
                *(i, launch, pool.view, self._cannot_send, log_path(i) if log_path else None),
                gather_seconds,
            )
            for i in range(num_workers)
        ]
        self._futures: dict[int, asyncio.Future[MadeGroup]] = {}
        self._homeless: deque[Order] = deque()  # no worker is alive to make them
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost: SlipstreamError | None = None
        self._starting: asyncio.Future[None] | None = None  # Ray, in a thread
        self._closed = False
        self.reports = RolloutReports()
        self.watchdog = Watchdog()
        """Is told of every group under way. Set by whoever watches the run."""

    # ---- life

    async def start(self) -> None:
        """Raises what a worker raises as it starts, or RolloutWorkerError."""
        if self._cluster is not None:
            self._starting = asyncio.ensure_future(asyncio.to_thread(self._cluster.start))
            await asyncio.shield(self._starting)
            take_sigterm_back()
        async with asyncio.TaskGroup() as group:
            for member in self._members:
                group.create_task(self._start(member))
        self._pool.elsewhere = self
        for member in self._members:
            self._spawn(self._serve(member))
            self._spawn(self._watch(member))
        self.watchdog.elsewhere = self.reports.standing

    async def close(self) -> None:
        """It may be called in any state, and more than once."""
        self._closed, self._pool.elsewhere = True, None
        if self._starting is not None:
            await asyncio.wait([self._starting])
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        alive = [member for member in self._members if member.alive]
        with contextlib.suppress(Exception):  # one that cannot close is killed
            closes = [asyncio.ensure_future(member.close()) for member in alive]
            if closes:
                await asyncio.wait(closes, timeout=CLOSE_SECONDS)
        for member in self._members:
            member.kill()
        if self._cluster is not None:
            await asyncio.to_thread(self._cluster.stop, self.pids)

    def kill_now(self) -> None:
        """Ends a cluster of their own at once; another's owner ends that."""
        if self._cluster is not None:
            self._cluster.kill_now(self.pids)

    @property
    def pids(self) -> list[int]:
        return [m.pid for m in self._members if m.pid is not None]

    # ---- MakeGroup

    async def __call__(self, admission: Admission, prompts: list[Sample]) -> MadeGroup:
        """Raises what making the group raised in the worker, or RolloutWorkerError when no worker
        is left."""
        index = admission.group_index
        future = self._futures[index] = asyncio.get_running_loop().create_future()
        try:
            self._place(Order(admission=admission, prompts=prompts))
            with self.watchdog.beside("group", index, "rollout worker"):
                return await future
        finally:
            del self._futures[index]

    def _place(self, order: Order) -> None:
        if self._lost is not None:
            self._settle(order, self._lost)
            return
        alive = [member for member in self._members if member.alive]
        if alive:
            min(alive, key=lambda member: len(member.orders)).order(order)
        else:
            self._homeless.append(order)

    def _settle(self, order: Order, error: Exception) -> None:
        future = self._futures.get(order.admission.group_index)
        if future is not None and not future.done():
            future.set_exception(error)

    def _cannot_send(self, orders: list[Order], error: Exception) -> None:
        for order in orders:
            self._settle(
                order,
                RolloutWorkerError(
                    f"the prompts of group {order.admission.group_index} cannot be sent to a"
                    f" rollout worker: {type(error).__name__}: {error}. Put what pickle can carry"
                    " into samples, or drop --num-rollout-workers"
                ),
            )

    # ---- Elsewhere

    def follow(self, view: PoolView) -> None:
        for member in self._members:
            if member.alive:
                member.tell()

    async def drained(self, endpoint: str) -> None:
        import ray

        async def drained(member: Member) -> None:
            with contextlib.suppress(ray.exceptions.RayError):  # dead, it has no request
                await member.drained(endpoint)

        async with asyncio.TaskGroup() as group:
            for member in self._members:
                if member.alive:
                    group.create_task(drained(member))

    # ---- one worker's life

    async def _start(self, member: Member) -> None:
        try:
            await member.start()
        except Exception as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, SlipstreamError):
                cause.add_note(f"in {member.name}")
                raise cause from None
            raise RolloutWorkerError(
                f"{member.name} did not start: {type(error).__name__}:"
                f" {str(error)[:2000]}{member.last_lines()}"
            ) from error

    async def _serve(self, member: Member) -> None:
        """Takes what the worker delivers, and replaces it when it dies."""
        import ray

        while True:
            try:
                self._deliver(member, await member.collect())
            except ray.exceptions.RayError as error:
                if not await self._replace(member, error):
                    return
                self._spawn(self._watch(member))

    def _deliver(self, member: Member, delivery: Delivery) -> None:
        self._pool.count_elsewhere(member.name, delivery.in_flight)
        for index, made in delivery.made:
            order, future = member.orders.pop(index, None), self._futures.get(index)
            if order is None or future is None or future.done():
                continue
            if isinstance(made, Broken):
                self._settle(order, made.error(member.name))
            else:
                future.set_result(made)
        for suspicion in delivery.suspicions:
            self._spawn(self._check(member, suspicion))

    async def _check(self, member: Member, suspicion: Suspicion) -> None:
        import ray

        await self._pool.report_failure(suspicion.endpoint, suspicion.as_error())
        with contextlib.suppress(ray.exceptions.RayError):
            await member.checked(suspicion.endpoint)

    async def _replace(self, member: Member, error: Exception) -> bool:
        """Gives what the worker owed to others, and starts it again. False when it is given up."""
        owed = list(member.orders.values())
        member.kill()
        self.reports.forget(member.number)
        self._pool.count_elsewhere(
            member.name, {engine.endpoint: 0 for engine in self._pool.view().engines}
        )
        said = f"{member.name} (pid {member.pid}) died ({type(error).__name__})"
        num, lines = counted(len(owed), "group"), member.last_lines()
        logger.warning("%s; its %s under way: made again%s", said, num, lines)
        for order in owed:
            self._place(order)
        while self.num_restarts < self._max_restarts:
            self.num_restarts += 1
            try:
                await self._start(member)
            except SlipstreamError as failure:
                logger.error("%s", failure)
                said = str(failure)
                continue
            logger.info("%s is back (pid %s)", member.name, member.pid)
            while self._homeless:
                self._place(self._homeless.popleft())
            return True
        if not any(other.alive for other in self._members):
            self._lose(
                RolloutWorkerError(
                    f"no rollout worker is left, after {self.num_restarts} restarts"
                    f" (--rollout-worker-restarts {self._max_restarts}). The last to go:"
                    f" {said}{member.last_lines()}"
                )
            )
        return False

    def _lose(self, error: SlipstreamError) -> None:
        self._lost = error
        for future in self._futures.values():
            if not future.done():
                future.set_exception(error)

    # ---- how they are

    async def _watch(self, member: Member) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError):  # whoever collects hears of it
            try:
                while True:
                    report = await asyncio.wait_for(member.watch(), self._silent_seconds)
                    self.reports.take(member.number, report)
            except TimeoutError:
                logger.warning(
                    "%s (pid %s) has said nothing for %g s: it is killed",
                    *(member.name, member.pid, self._silent_seconds),
                )
                member.kill(hard=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """What goes wrong in the driver's own part ends the run, as if it were a group's."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._closed:
            lost = RolloutWorkerError(f"rollout workers: {type(error).__name__}: {error}")
            lost.__cause__ = error
            self._lose(lost)
