"""The process groups in which weights travel: one for a wave, of the learner (rank 0) and all ranks
of all engines of the wave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Sequence

from pipeline.core.errors import SlipstreamError, WeightSyncError
from pipeline.core.protocols import WeightSender
from stages.publish.buckets import TensorMeta
from stages.publish.collective import Broken, together
from stages.publish.control import EngineControl, bucket_body, settle
from stages.publish.turn import shielded

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 3.0  # for engines to leave a group when the run ends


class WaveGroups:
    """Groups are kept from push to push, and formed anew where members came, went or restarted. An
    engine is in one group at most."""

    def __init__(
        self,
        sender: WeightSender,
        *,
        backend: str,
        ranks_per_engine: int,
        control: Callable[[str], EngineControl],
        condemn: Callable[[str, str], None],
    ) -> None:
        """`condemn`: PushPool's."""
        self._sender, self._backend = sender, backend
        self._ranks_per_engine, self._control, self._condemn = ranks_per_engine, control, condemn
        self._names: dict[tuple[str, ...], str] = {}  # members, in the order of ranks -> name

    async def form(self, members: Sequence[str]) -> dict[str, WeightSyncError]:
        """Forms the group of these engines, unless it stands. Returns the engines that are to blame
        when it does not come about, with their failures: the others may form one without them.

        Engines that are dead or stuck are ended. Meanwhile the schedulers of the others wait, for
        as long as the learner does (stages/publish/sender.py)."""
        key = tuple(members)
        if key in self._names:
            return {}
        for others in [k for k in self._names if set(k) & set(key)]:
            await self.dissolve(others)
        name = f"slipstream-weights-{uuid.uuid4().hex}"
        address, port = await self._sender.meeting_place()
        world = 1 + len(key) * self._ranks_per_engine
        self._names[key] = name  # from here on the learner may be in it
        try:
            broken = await together(
                {
                    endpoint: self._control(endpoint).init_group(
                        name,
                        address,
                        port,
                        rank_offset=1 + i * self._ranks_per_engine,
                        world_size=world,
                        backend=self._backend,
                    )
                    for i, endpoint in enumerate(key)
                },
                self._sender.join(name, address, port, world, self._backend),
                lambda: self._leave(name),
            )
        except BaseException as error:  # nobody knows who waits for whom
            for endpoint in key:
                self._condemn_waiting(endpoint, error)
            self._names.pop(key, None)
            with contextlib.suppress(SlipstreamError):
                await shielded(self._sender.leave(name))
            raise
        return {} if broken is None else await self._blame(key, broken)

    async def broadcast(
        self, members: Sequence[str], bucket: int, metas: Sequence[TensorMeta], version: int | None
    ) -> Broken | None:
        """Sends one bucket to the group of these engines (see `bucket_body`).

        When it breaks, it breaks for all: of an engine with several ranks only the first says how
        it went. Engines that are dead or stuck are ended, and the group is no more."""
        name = self._names[tuple(members)]
        body = bucket_body(name, metas, version)
        broken = await together(
            {endpoint: self._control(endpoint).receive(body) for endpoint in members},
            self._sender.broadcast(name, bucket),
            lambda: self._leave(name),
        )
        if broken is not None:
            for endpoint, error in broken.unwell.items():
                self._condemn(endpoint, f"its weights are of no version ({error})")
            del self._names[tuple(members)]
            await self._take_out([e for e in members if e not in broken.unwell], name)
        return broken

    async def dissolve(self, members: Sequence[str], gone: str | None = None) -> None:
        """Takes the learner and the engines, but for the one that is gone, out of the group."""
        name = self._names.pop(tuple(members))
        await self._leave(name)
        await self._take_out([e for e in members if e != gone], name)

    async def forget(self, endpoint: str) -> None:
        """The engine's process is a new one: its group is no more."""
        for members in [k for k in self._names if endpoint in k]:
            await self.dissolve(members, gone=endpoint)

    async def close(self) -> None:
        """Takes the learner out of all groups, as far as it still lives, and the engines, for those
        that somebody else runs go on without it."""
        failed = []
        for key in list(self._names):
            name = self._names.pop(key)
            try:
                await self._sender.leave(name)
            except SlipstreamError as error:
                failed.append(str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._take_out(key, name)
        if failed:
            more = f" (and {len(failed) - 3} more)" if len(failed) > 3 else ""
            logger.warning("closing the weight transport: %s%s", "; ".join(failed[:3]), more)

    async def _blame(self, key: tuple[str, ...], broken: Broken) -> dict[str, WeightSyncError]:
        name = self._names.pop(key)
        missing = broken.unwell
        for endpoint, error in missing.items():
            self._condemn_waiting(endpoint, error)
        await self._take_out([e for e in key if e not in broken.engines], name)
        to_blame = set(missing) | broken.first or set(key)
        return {
            endpoint: WeightSyncError(
                f"the group of {len(key)} engines and the learner did not form, for"
                f" {', '.join(sorted(to_blame)) if len(to_blame) < len(key) else 'the learner'}:"
                f" {broken.reason(endpoint)}"
            )
            for endpoint in to_blame
        }

    async def _leave(self, name: str) -> None:
        try:
            await self._sender.leave(name)
        except WeightSyncError as error:  # what matters is that it is out of it
            logger.warning("%s", error)

    async def _take_out(self, endpoints: Sequence[str], name: str) -> None:
        """Engines that hold a group which is no more let it go, where they can."""
        for endpoint, error in (
            await settle({e: self._control(e).leave_group(name) for e in endpoints})
        ).items():
            logger.debug("%s did not leave its group: %s", endpoint, error)

    def _condemn_waiting(self, endpoint: str, error: BaseException) -> None:
        self._condemn(
            endpoint,
            f"it was told to join a group that did not form ({error or type(error).__name__})",
        )
