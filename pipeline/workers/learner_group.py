"""The learner's ranks as Ray actors, and the driver's handle on them.

Ray is used for what it is good at: placing processes (on GPUs, on other nodes), carrying batches,
noticing deaths."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.batch_share import batch_shares, step_shares
from pipeline.core.errors import LearnerLostError, SlipstreamError, UserFunctionError
from pipeline.core.types import OptimizerStep, StepResult, TrainBatch
from pipeline.schedule.placement import Wanted
from pipeline.workers.pools import Pools, Where
from pipeline.workers.rank_actor import awaited
from pipeline.workers.rank_launch import in_order, make_actors, on_gpu, seat
from pipeline.workers.rank_senders import ANSWER_SECONDS, RankSenders, absolute
from pipeline.workers.ray_cluster import end_actor, ray_address
from pipeline.workers.store_size import object_store_bytes
from stages.learn.settings import LearnerSettings

CLOSE_SECONDS = 10.0  # for ranks to leave their process groups before they are killed
DEATH_SECONDS = 5.0  # for Ray to notice that a process is gone; others' sockets tell them at once


class LearnerGroup(RankSenders):
    """All learner ranks. Implements `Learner` and `WeightSender`; every method is awaited without
    holding the event loop.

    A refused step raises the ranks' LearnerError and leaves them alive. A rank that dies or breaks
    raises LearnerLostError with its last lines at once, and takes the others with it: they would
    wait for it in a collective. After that only `restart` is of use."""

    def __init__(
        self,
        settings: LearnerSettings,
        pools: Pools | None = None,
        *,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """`pools`: where the ranks go, shared with the engines; None: a cluster for them alone,
        closed with them. `answer_seconds`: for one call of a push to one rank."""
        super().__init__(answer_seconds)
        self._settings, self._owns_pools = settings, pools is None
        self._pools = pools or learner_pools(settings)
        self._seats: list[Where] = []  # of every rank
        self._dp_ranks: list[int] = []  # of every rank; those with the same one share samples
        self._dp_size = 1
        self._broken: str | None = None
        self._saving = False  # has a save begun that is not finished?

    # ---- life

    async def start(self) -> None:
        """Brings up Ray and the ranks, with the model loaded.

        Raises ConfigError, CheckpointError or LearnerError."""
        try:
            await self._pools.start()
            await self._bring_up()
        except BaseException:
            await asyncio.shield(self.close())
            raise

    async def restart(self) -> None:
        """New ranks in the place of those that are lost, on whatever is free, with the model as it
        was loaded in the beginning.

        Raises ClusterError where there is no room; LearnerLostError where a new one dies too."""
        if self._broken is None:
            self._end_ranks("it is being started again")
        await self._pools.move_learner(self._seats)
        self._broken, self._saving, self._sent = None, False, None
        try:
            await self._bring_up()
        except BaseException:
            self._end_ranks("it could not be started again")
            raise

    async def _bring_up(self) -> None:
        self._actors = await self._seated(make_actors(self._settings, self._pools))
        await self._all("warm_up")
        address = (
            (await self._on([self._actors[0]], "serve_store"))[0] if len(self._actors) > 1 else None
        )
        places = await self._all("build", address)
        self._dp_ranks = [dp_rank for dp_rank, _ in places]
        self._dp_size = places[0][1]

    async def _seated(self, actors: list[Any]) -> list[Any]:
        """The actors in the order of their ranks."""
        self._actors, self._seats = actors, []  # for `close`, whatever happens
        found = await self._all("where")
        berths = self._pools.learner_berths()
        order = in_order(found, berths)
        self._seats = [found[i] for i in order]
        for where in self._seats:
            self._pools.note(where.pid)
        self._pools.placed([gpu for where in self._seats for gpu in where.gpus])
        out = [actors[i] for i in order]
        seats = [
            seat(self._settings, rank, where, berths[0].place, spans_nodes=self._pools.spans_nodes)
            for rank, where in enumerate(self._seats)
        ]
        await self._results([a.take_seat.remote(s) for a, s in zip(out, seats, strict=True)])
        return out

    async def close(self) -> None:
        """Takes down the ranks, and the cluster that is theirs alone. It may be called in any
        state, and more than once."""
        if self._actors and self._broken is None:
            refs = [a.call.remote("close") for a in self._actors]
            with contextlib.suppress(Exception):  # a rank that cannot close is killed below
                await asyncio.wait_for(asyncio.wait(map(_answer_to, refs)), CLOSE_SECONDS)
        self._end_ranks("it is closed")
        self._actors = []
        if self._owns_pools:
            await self._pools.close()
        self._seats = []

    def kill_now(self) -> None:
        """End every process of ours on this machine at once, without waiting for anything."""
        self._pools.kill_now()
        self._broken = "it was killed"

    # ---- Learner

    async def step(self, batch: TrainBatch) -> StepResult:
        self._went_on = True
        shares = batch_shares(batch, self._dp_size)
        return StepResult(metrics=(await self._each(shares, "step"))[0])

    async def sft_step(self, step: OptimizerStep, lr: float) -> dict[str, float]:
        """One supervised step at learning rate `lr`; see MegatronRank.sft_step."""
        self._went_on = True
        return (await self._each(step_shares(step, self._dp_size), "sft_step", lr))[0]

    async def reset_optimizer(self) -> None:
        """Forget Adam's moments and start the schedule anew (after a warm-up)."""
        await self._all("call", "reset_optimizer")

    async def offload(self) -> None:
        """Every rank gives its device up, until the next step."""
        await self._all("call", "offload")

    async def onload(self) -> None:
        await self._all("call", "onload")

    async def save(self, path: Path, hf: Path | None) -> None:
        target = absolute(hf) if hf is not None else None
        if self._settings.config.run.async_save:
            await self._all("call", "begin_save", absolute(path), target)
            self._saving = True
            return
        await self._all("call", "save", absolute(path), target)

    async def saved(self, *, wait: bool) -> bool:
        if self._saving and (wait or all(await self._all("call", "save_written"))):
            self._saving = False
            await self._all("call", "finish_save")
        return not self._saving

    async def load(self, path: Path) -> None:
        self._went_on = True
        await self._all("call", "load", absolute(path))

    # ---- calls

    async def _all(self, method: str, *args: Any) -> list[Any]:
        return await self._on(self._actors, method, *args)

    async def _each(self, shares: Sequence[Any], method: str, *args: Any) -> list[Any]:
        """Calls the method of every rank with its own share, which goes into Ray's object store
        once: ranks that share samples, on one node, share the memory too."""
        self._check_usable()
        import ray

        # pickling takes as long as copying the samples does; the event loop has others to serve
        stored = await asyncio.to_thread(lambda: [ray.put(share) for share in shares])
        self._check_usable()
        return await self._results(
            [
                actor.call.remote(method, stored[dp_rank], *args)
                for actor, dp_rank in zip(self._actors, self._dp_ranks, strict=True)
            ]
        )

    async def _on(self, actors: Sequence[Any], method: str, *args: Any) -> list[Any]:
        self._check_usable()
        return await self._results([getattr(a, method).remote(*args) for a in actors])

    def _check_usable(self) -> None:
        if self._broken:
            raise LearnerLostError(f"the learner cannot be used: {self._broken}")

    async def _results(self, refs: Sequence[Any], ranks: Sequence[int] | None = None) -> list[Any]:
        """All results, or the first failure as soon as it is known. `ranks`: whose they are, by
        default 0, 1, ..."""
        tasks = [_answer_to(ref) for ref in refs]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            failed = next(
                ((i, e) for i, t in enumerate(tasks) if t.done() and (e := t.exception())), None
            )
            if failed is None:
                return [t.result() for t in tasks]
            index, error = failed
            raise await self._explain(index if ranks is None else ranks[index], error, tasks)
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
        if cause is not None and not isinstance(cause, UserFunctionError):
            dead = await self._first_dead()
            if dead is not None:  # then what this one failed in was a collective with it
                (rank, error), cause = dead, None
        lines = self._last_lines(rank)
        self._end_ranks(f"rank {rank} failed earlier")
        if isinstance(cause, UserFunctionError):  # on this rank, on others perhaps not
            cause.add_note(f"on learner rank {rank}")
            cause.add_note(str(error))  # the traceback there, for the log
            return cause
        what = (
            f"failed: {type(cause).__name__}: {cause}"
            if cause is not None
            else f"died ({type(error).__name__})"
        )
        out = LearnerLostError(f"learner rank {rank} (pid {self._pid(rank)}) {what}{lines}")
        if cause is not None:
            out.__cause__ = cause  # a full disk is told by it
            out.add_note(str(error))  # the traceback on the rank
        return out

    async def _first_dead(self) -> tuple[int, BaseException] | None:
        """The rank whose process is gone, if there is one, and what Ray says of it."""
        asked = [_answer_to(actor.where.remote()) for actor in self._actors]
        if not asked:
            return None
        # one that is alive may hang in a collective, and answers when it is killed
        await asyncio.wait(asked, timeout=DEATH_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
        found = [(i, e) for i, task in enumerate(asked) if task.done() and (e := task.exception())]
        for task in asked:
            task.cancel()
        return found[0] if found else None

    def _silent(self, rank: int, what: str) -> Exception:
        self._end_ranks(f"rank {rank} gave no answer earlier")
        return LearnerLostError(
            f"learner rank {rank} (pid {self._pid(rank)}) gave no answer to {what}: its process is"
            f" stopped, or its node cannot be reached{self._last_lines(rank)}"
        )

    def _end_ranks(self, why: str) -> None:
        self._broken = self._broken or why
        for actor in self._actors:
            end_actor(actor)

    def _pid(self, rank: int) -> int | str:
        return self._seats[rank].pid if self._seats else "?"

    def _last_lines(self, rank: int) -> str:
        """What the rank wrote last, for the error message."""
        lines = []
        if self._seats:
            seat = self._seats[rank]
            lines = self._pools.cluster.last_lines(seat.pid, seat.node)
        return "; its last lines:\n  " + "\n  ".join(lines) if lines else ""


def _answer_to(call: Awaitable[Any]) -> asyncio.Future[Any]:
    """The call as a task. Of several ranks that fail the first is reported; asyncio must not
    complain that nobody looked at the others' errors."""
    task = asyncio.ensure_future(awaited(call))
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def learner_pools(settings: LearnerSettings) -> Pools:
    """Room for the ranks alone."""
    cluster = settings.cluster
    return Pools(
        Wanted(
            actor_num_nodes=cluster.actor_num_nodes,
            actor_num_gpus_per_node=cluster.actor_num_gpus_per_node,
            engines=(),
            num_gpus_per_node=cluster.num_gpus_per_node,
        ),
        address=ray_address(cluster),
        on_gpu=on_gpu(settings),
        object_store_bytes=object_store_bytes(settings.config),
    )
