"""The driver's side of the senders that live in the learner's ranks."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pipeline.core.errors import StaleWeightsError
from pipeline.core.types import PreparedWeights, StagedDelta
from stages.publish.buckets import TensorMeta, num_bytes, split
from stages.publish.sender import GROUP_TIMEOUT_SECONDS
from stages.publish.turn import shielded

SENDING = "sending"  # the thread of a rank that serves pushes beside its steps
ANSWER_SECONDS = 2 * GROUP_TIMEOUT_SECONDS + 60.0  # gathering a bucket and sending it have limits


def absolute(path: Path) -> Path:
    """The absolute path, because ranks have a working directory of their own."""
    return path.absolute()


class RankSenders(ABC):
    """Implements `WeightSender`. Every rank has a sender (stages/publish/sender.py); those that own
    a part of the weights send it, and the others help to gather."""

    def __init__(self, answer_seconds: float) -> None:
        self._answer_seconds = answer_seconds
        self._actors: list[Any] = []
        self._sent: list[list[TensorMeta]] | None = None  # what every rank sends
        self._prepared: list[list[list[TensorMeta]]] = []  # the same in buckets
        self._copied = True  # were these copied?
        self._went_on = False  # may the weights be others than those that were prepared?

    @abstractmethod
    def _check_usable(self) -> None:
        """Raises LearnerError where no rank can be asked."""

    @abstractmethod
    async def _all(self, method: str, *args: Any) -> list[Any]:
        """Calls the method of all ranks, on the thread that serves steps."""

    @abstractmethod
    async def _results(self, refs: Sequence[Any], ranks: Sequence[int] | None = None) -> list[Any]:
        """All results, or the first failure. `ranks`: whose they are, by default 0, 1, ..."""

    @abstractmethod
    def _silent(self, rank: int, what: str) -> Exception:
        """Ends the ranks, for this one does not answer; returns the error."""

    async def prepare(self, max_bucket_bytes: int, max_copy_bytes: int | None) -> PreparedWeights:
        if self._sent is None:
            self._sent = await self._all("send", "describe")
        largest = max(sum(map(num_bytes, metas)) for metas in self._sent)
        self._copied = max_copy_bytes is None or largest <= max_copy_bytes
        # what is not copied is held in two buckets, and in what the next one is made of
        size = max_bucket_bytes if self._copied else max(1, max_bucket_bytes // 2)
        self._prepared = [split(metas, size) for metas in self._sent]
        self._went_on = False
        if self._copied:
            await self._begin_gathering()
            await self._all("send", "gather")
        return PreparedWeights(
            buckets={rank: buckets for rank, buckets in enumerate(self._prepared) if buckets},
            copied=self._copied,
        )

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        if self._copied:
            yield
            return
        if self._went_on:
            raise StaleWeightsError(
                "the learner has gone on since the last push, of which it kept no copy"
                " (--push-staging-bytes)"
            )
        await self._begin_gathering()
        # on the threads that serve steps: the next one begins when this is through
        gathering = asyncio.ensure_future(self._all("send", "gather"))
        try:
            yield
        finally:
            await shielded(self._end_gathering(gathering))

    async def _begin_gathering(self) -> None:
        self._check_usable()
        await self._results(
            [
                actor.send.remote("begin", buckets, self._copied)
                for actor, buckets in zip(self._actors, self._prepared, strict=True)
            ]
        )

    async def _end_gathering(self, gathering: asyncio.Future[Any]) -> None:
        try:
            self._check_usable()
            await self._results(
                [a.send.options(concurrency_group=SENDING).remote("end") for a in self._actors]
            )
        finally:
            await asyncio.wait({gathering})
            gathering.exception()  # broadcasts have said it

    async def meeting_place(self, sender: int) -> tuple[str, int]:
        place: tuple[str, int] = await self._send(sender, "meeting_place")
        return place

    async def join(
        self, sender: int, group_name: str, address: str, port: int, world_size: int, backend: str
    ) -> None:
        await self._send(sender, "join", group_name, address, port, world_size, backend)

    async def leave(self, sender: int, group_name: str) -> None:
        await self._send(sender, "leave", group_name)

    async def broadcast(self, sender: int, group_name: str, bucket: int) -> None:
        await self._send(sender, "broadcast", group_name, bucket)

    async def export_hf(self, path: Path) -> None:
        await self._all("call", "publish_hf", absolute(path))

    async def export_delta(self, path: Path) -> StagedDelta:
        self._check_usable()
        others = [a.gather.remote() for a in self._actors[1:]]
        first = self._actors[:1]
        made = [a.send_delta.remote("export_delta", absolute(path)) for a in first]
        staged: StagedDelta = (await self._results([*made, *others]))[0]
        return staged

    async def export_all(self, path: Path, reached: str) -> int:
        self._check_usable()
        first = self._actors[0].send_delta.options(concurrency_group=SENDING)
        answer = first.remote("export_all", absolute(path), reached)
        return int((await self._results([answer]))[0])

    async def gather(self, max_bucket_bytes: int) -> list[list[tuple[str, str, list[int]]]]:
        """See WeightLender."""
        self._check_usable()
        others = [a.gather.remote() for a in self._actors[1:]]
        first = self._actors[0].lend.remote("gather", max_bucket_bytes)
        return (await self._results([first, *others]))[0]

    async def lend(self, method: str, arguments: Mapping[int, Sequence[Any]]) -> dict[int, Any]:
        """Calls a method of the MemoryLender of these ranks, which may be in a step."""
        self._check_usable()
        refs = [
            self._actors[rank].lend.options(concurrency_group=SENDING).remote(method, *args)
            for rank, args in arguments.items()
        ]
        return dict(zip(arguments, await self._results(refs, list(arguments)), strict=True))

    async def _send(self, rank: int, method: str, *args: Any) -> Any:
        """A call of the rank's sender that may be served while a step is."""
        self._check_usable()
        call = self._actors[rank].send.options(concurrency_group=SENDING)
        try:
            async with asyncio.timeout(self._answer_seconds):
                return (await self._results([call.remote(method, *args)], ranks=[rank]))[0]
        except TimeoutError:
            what = f"{method!r} of a push within {self._answer_seconds:g} s"
            raise self._silent(rank, what) from None
