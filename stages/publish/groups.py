"""The process groups in which weights travel: one for a wave and a sender, of that sender (rank 0)
and all ranks of all engines of the wave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence

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
        # members, in the order of ranks -> sender -> name
        self._names: dict[tuple[str, ...], dict[int, str]] = {}

    async def form(
        self, members: Sequence[str], senders: Iterable[int]
    ) -> dict[str, WeightSyncError]:
        """Forms the groups of these engines with each sender, unless they stand. Returns the
        engines that are to blame when one does not come about, with their failures: the others may
        form groups without them.

        One after the other: an engine enters a group when all others do, and does nothing else
        meanwhile. Engines that are dead or stuck are ended; the schedulers of the others wait for
        as long as the sender does (stages/publish/sender.py)."""
        key = tuple(members)
        if key in self._names:
            return {}
        for others in [k for k in self._names if set(k) & set(key)]:
            await self.dissolve(others)
        self._names[key] = {}
        wave = uuid.uuid4().hex
        for sender in senders:
            blamed = await self._form(key, sender, f"slipstream-weights-{wave}-{sender}")
            if blamed:
                return blamed
        return {}

    async def _form(
        self, key: tuple[str, ...], sender: int, name: str
    ) -> dict[str, WeightSyncError]:
        address, port = await self._sender.meeting_place(sender)
        world = 1 + len(key) * self._ranks_per_engine
        self._names[key][sender] = name  # from here on the sender may be in it
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
                self._sender.join(sender, name, address, port, world, self._backend),
                lambda: self._leave(sender, name),
            )
        except BaseException as error:  # nobody knows who waits for whom
            for endpoint in key:
                self._condemn_waiting(endpoint, error)
            for its, group in self._names.pop(key, {}).items():
                with contextlib.suppress(SlipstreamError):
                    await shielded(self._sender.leave(its, group))
            raise
        return {} if broken is None else await self._blame(key, broken)

    async def broadcast(
        self,
        members: Sequence[str],
        sender: int,
        bucket: int,
        metas: Sequence[TensorMeta],
        version: int | None,
    ) -> Broken | None:
        """Sends one of the sender's buckets to the group of these engines (see `bucket_body`).

        When it breaks, it breaks for all: of an engine with several ranks only the first says how
        it went. Engines that are dead or stuck are ended, and the wave's groups are no more. Raises
        LearnerLostError."""
        name = self._names[tuple(members)][sender]
        body = bucket_body(name, metas, version)
        broken = await together(
            {endpoint: self._control(endpoint).receive(body) for endpoint in members},
            self._sender.broadcast(sender, name, bucket),
            lambda: self._leave(sender, name),
        )
        if broken is not None:
            for endpoint, error in broken.unwell.items():
                self._condemn(endpoint, f"its weights are of no version ({error})")
            well = [e for e in members if e not in broken.unwell]
            names = self._names.pop(tuple(members))
            await self._raise_lost(broken, names, well)
            await self._take_out(well, names.pop(sender))  # which the sender has left
            await self._dissolve(names, well)
        return broken

    async def dissolve(self, members: Sequence[str], gone: str | None = None) -> None:
        """Takes the learner and the engines, but for the one that is gone, out of the groups."""
        names = self._names.pop(tuple(members))
        await self._dissolve(names, [e for e in members if e != gone])

    async def _dissolve(self, names: Mapping[int, str], engines: Sequence[str]) -> None:
        for sender, name in names.items():
            await self._leave(sender, name)
        for name in names.values():
            await self._take_out(engines, name)

    async def forget(self, endpoint: str) -> None:
        """The engine's process is a new one: its groups are no more."""
        for members in [k for k in self._names if endpoint in k]:
            await self.dissolve(members, gone=endpoint)

    async def part(self, endpoint: str) -> None:
        """The engine is to leave: its groups are no more. One that lives on is told so too."""
        for members in [k for k in self._names if endpoint in k]:
            await self.dissolve(members)

    async def forget_sender(self) -> None:
        """The learner's process is a new one, which is in no group. The engines leave theirs."""
        waves, self._names = self._names, {}
        for members, names in waves.items():
            for name in names.values():
                await self._take_out(members, name)

    async def close(self) -> None:
        """Takes the learner out of all groups, as far as it still lives, and the engines, for those
        that somebody else runs go on without it."""
        failed = []
        for key in list(self._names):
            names = self._names.pop(key)
            for sender, name in names.items():
                try:
                    await self._sender.leave(sender, name)
                except SlipstreamError as error:
                    failed.append(str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    for name in names.values():
                        await self._take_out(key, name)
        if failed:
            more = f" (and {len(failed) - 3} more)" if len(failed) > 3 else ""
            logger.warning("closing the weight transport: %s%s", "; ".join(failed[:3]), more)

    async def _blame(self, key: tuple[str, ...], broken: Broken) -> dict[str, WeightSyncError]:
        names = self._names.pop(key)
        *earlier, (sender, name) = names.items()
        missing = broken.unwell
        for endpoint, error in missing.items():
            self._condemn_waiting(endpoint, error)
        await self._raise_lost(broken, names, [e for e in key if e not in missing])
        await self._take_out([e for e in key if e not in broken.engines], name)
        await self._dissolve(dict(earlier), [e for e in key if e not in missing])
        to_blame = set(missing) | broken.first or set(key)
        return {
            endpoint: WeightSyncError(
                f"the group of {len(key)} engines and the learner's rank {sender} did not form, for"
                f" {', '.join(sorted(to_blame)) if len(to_blame) < len(key) else 'that rank'}:"
                f" {broken.reason(endpoint)}"
            )
            for endpoint in to_blame
        }

    async def _raise_lost(
        self, broken: Broken, names: Mapping[int, str], engines: Sequence[str]
    ) -> None:
        """Where the learner is lost nobody can be told to leave but the engines."""
        if broken.lost is None:
            return
        for name in names.values():
            await self._take_out(engines, name)
        raise broken.lost

    async def _leave(self, sender: int, name: str) -> None:
        try:
            await self._sender.leave(sender, name)
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
