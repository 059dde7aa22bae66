"""What all transports have in common: weights are staged once, and roll over the pool wave by wave.

All engines of a wave pause, are given the weights and go on together, while the other waves decode;
--push-wave-fraction says how much of the pool a wave is. An engine is never left paused, and never
serves weights of no version: when one fails in the middle, it is ended and started again, and comes
back with the current weights (`resync`); those beside it, whose weights are then half replaced,
stay paused and are given all of them again, without it."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import aiohttp

from configs.schema import ClusterConfig
from pipeline.core.errors import LearnerLostError, StaleWeightsError, WeightSyncError
from pipeline.core.sockets import watched_socket
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import PushResult
from stages.publish.control import EngineControl, settle
from stages.publish.equality import EqualityCheck
from stages.publish.turn import PushPool, Turn, shielded
from stages.publish.waves import split_waves

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # at one engine, within one push; the first is its wave's
RETRY_SECONDS = 0.5  # before the second attempt; doubles
# of a connection between two calls: less than a server waits before it closes one
KEEP_ALIVE_SECONDS = 1.0


class RollingTransport(ABC):
    """`WeightTransport`.

    A subclass says how weights are staged once, and how paused engines get them.
    """

    def __init__(
        self,
        pool: PushPool,
        cluster: ClusterConfig,
        *,
        headers: Mapping[str, str] | None = None,
        time: TimeSource | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`headers`: of every request to an engine."""
        self._pool, self._cluster, self._headers = pool, cluster, headers
        self._time: TimeSource = time or MonotonicTime()
        self._sleep = sleep
        self._session: aiohttp.ClientSession | None = None
        self._lock = asyncio.Lock()  # staging and every wave: none sees another half done
        self._began = 0.0
        self._num_bytes = 0
        self._staged: int | None = None  # the version that is staged
        self._sender_is_there = asyncio.Event()
        self._sender_is_there.set()
        self._delivered: set[str] = set()  # engines that hold what is staged
        self._reached = asyncio.Event()  # some engine holds it
        self._left_out: set[str] = set()  # engines that were down at a push, and are
        self._stall_seconds: dict[str, float] = {}
        # engines that were given a part of a push as the learner was lost
        self._held: dict[str, Turn] = {}
        # engines whose `resync` found the staged weights gone, and waits for the next push
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._equality = EqualityCheck(self._control) if cluster.check_weight_update_equal else None
        pool.on_restart, pool.on_leave = self.resync, self.part
        self.room: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
        """Entered while weights are staged: where engines share the learner's devices, they make
        room for it."""

    @property
    def has_staged(self) -> bool:
        """Is there anything that `resync` would give an engine?"""
        return self._staged is not None

    async def stage(self, policy_version: int) -> bool:
        """See WeightTransport."""
        self._began = self._time.now()
        async with self._lock:
            async with self.room():
                self._num_bytes = await self._stage(policy_version)
            self._staged, self._delivered, self._stall_seconds = policy_version, set(), {}
            self._reached.clear()
            self._sender_is_there.set()
        return self._copied

    async def deliver(self) -> PushResult:
        """See WeightTransport.

        It does not wait for engines that are being started again, nor for those that it has ended
        itself: they take no requests before `resync` has brought them what is staged then. Those
        that the pool has lost for good are left out too. One engine at least has the version in
        the end."""
        assert self._staged is not None, "deliver() before stage()"
        failed: dict[str, WeightSyncError] = {}
        for wave in split_waves(self._pool.endpoints, self._cluster.push_wave_fraction):
            async with self._lock:
                there = set(self._pool.endpoints)  # some may have left meanwhile
                present = [e for e in wave if e in there and self._pool.is_up(e)]
                present = [e for e in present if e not in self._delivered]
                if present:
                    failed |= await self._give(present)
        await self._serve_waiting(failed)
        late = []
        for endpoint in self._pool.endpoints:
            if endpoint in self._delivered:
                continue
            try:
                await self._deliver(endpoint, failed.get(endpoint))
            except WeightSyncError as error:
                late.append(error)
        if late or not self._delivered:
            what = "; ".join(map(str, late)) or "no engine is left"
            raise WeightSyncError(
                f"policy version {self._staged} did not reach every engine: {what}"
            )
        await self._all_delivered()
        if self._equality is not None:
            async with self._lock:
                await self._equality.check(sorted(self._delivered), self._staged)
        return PushResult(
            policy_version=self._staged,
            seconds=self._time.now() - self._began,
            stall_seconds=max(self._stall_seconds.values(), default=0.0),
            num_bytes=self._num_bytes,
            num_engines=len(self._delivered),
        )

    async def _serve_waiting(self, failed: dict[str, WeightSyncError]) -> None:
        """Ends the waiting of engines whose `resync` came too late for the push before. `failed`:
        in this push; those that have waited are taken out of it, for they are started again."""
        for endpoint, arrived in list(self._waiting.items()):
            if endpoint not in self._delivered and endpoint not in failed:
                async with self._lock:
                    failed |= await self._give([endpoint])
            error = failed.pop(endpoint, None)
            if not arrived.done():
                arrived.set_result(None) if error is None else arrived.set_exception(error)

    async def wipe_loaded(self) -> None:
        """With --check-weight-update-equal, of engines that have loaded the learner's own weights:
        the next push must bring the same ones. Before anything is generated."""
        if self._equality is not None:
            await self._equality.wipe(self._pool.endpoints)

    async def push(self, policy_version: int) -> PushResult:
        """Stages and delivers."""
        await self.stage(policy_version)
        return await self.deliver()

    async def resync(self, endpoint: str) -> None:
        """Brings one engine that has just restarted to the weights of the last push; before the
        first push there is nothing to do. `SGLangPool.on_restart` wants this. Raises
        WeightSyncError."""
        if self._held.pop(endpoint, None) is not None:  # that was another process
            self._pool.end_push(endpoint, None)
        await self._sender_is_there.wait()
        async with self._lock:
            self._delivered.discard(endpoint)
            await self._forget(endpoint)
            failed = await self._give([endpoint]) if self._staged is not None else {}
        if isinstance(error := failed.get(endpoint), StaleWeightsError):
            await self._next_push(endpoint, error)
        elif error is not None:
            raise error

    async def part(self, endpoint: str, leave: Callable[[], None]) -> None:
        """Ends what is agreed with an engine that is to leave the pool, and calls `leave`, while no
        wave meets: a group that is being formed waits for each of its members.
        `SGLangPool.on_leave` wants this."""
        async with self._lock:
            await self._part(endpoint)
            leave()

    async def _next_push(self, endpoint: str, error: StaleWeightsError) -> None:
        """Waits until the next push has given the engine its weights. Raises `error` where that may
        never be: no engine is left that generates what the learner would push after."""
        if not any(self._pool.is_up(e) for e in self._delivered - self._waiting.keys()):
            for other in self._waiting.values():
                if not other.done():
                    other.set_exception(error)
            raise error
        logger.warning("%s waits for the next push: %s", endpoint, error)
        arrived = self._waiting[endpoint] = asyncio.get_running_loop().create_future()
        try:
            await arrived
        finally:
            del self._waiting[endpoint]

    def sender_lost(self) -> None:
        """The learner is gone, with what it had staged: an engine that comes up waits for what is
        staged next."""
        self._sender_is_there.clear()

    async def sender_back(self) -> None:
        """A new learner is there, which knows nothing of what was agreed with the old one."""
        async with self._lock:
            await self._forget_sender()

    async def close(self) -> None:
        for turn in self._held.values():  # nobody came
            turn.held = False
        await each(list(self._held.values()), Turn.end)
        if self._session is not None:
            await self._session.close()
            self._session = None

    @abstractmethod
    async def _stage(self, version: int) -> int:
        """Takes the learner's weights as they are now; returns how many bytes they have."""

    @property
    def _copied(self) -> bool:
        """Is what is staged a copy?"""
        return True

    @abstractmethod
    async def _load(self, team: Sequence[Turn], version: int) -> None:
        """Brings the staged weights to paused engines. Every turn is told whether its weights may
        be mixed from here on, and what went wrong."""

    async def _connect(self, endpoints: Sequence[str]) -> dict[str, WeightSyncError]:
        """Does what can be done while the engines still generate.

        Returns those that cannot take part, and why."""
        return {}

    async def _forget(self, endpoint: str) -> None:  # noqa: B027
        """The engine's process is a new one: what was agreed with the old one is void."""

    async def _part(self, endpoint: str) -> None:
        """The engine, which may live on, is to leave."""
        await self._forget(endpoint)

    async def _forget_sender(self) -> None:  # noqa: B027
        """The learner's process is a new one."""

    async def _all_delivered(self) -> None:  # noqa: B027
        """Does every engine hold what is staged?"""

    def _control(self, endpoint: str) -> EngineControl:
        if self._session is None:
            # no limit: the engines of a wave wait for each other
            connector = aiohttp.TCPConnector(
                limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS, socket_factory=watched_socket
            )
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return EngineControl(self._session, endpoint)

    async def _deliver(self, endpoint: str, failure: WeightSyncError | None) -> None:
        """Tries until this engine holds what is staged, or its attempts are used up. `failure`: of
        its wave's attempt. Where no engine has it yet, one that is being started again is waited
        for, and is resynced meanwhile."""
        for attempt in range(0 if failure is None else 1, ATTEMPTS + 1):
            if failure is not None:
                logger.warning(
                    "push of version %d, attempt %d of %d: %s",
                    self._staged,
                    attempt,
                    ATTEMPTS,
                    failure,
                )
                await self._pool.report_failure(endpoint, failure)
                if attempt == ATTEMPTS:
                    break
                await self._sleep(RETRY_SECONDS * 2 ** (attempt - 1))
            if not await self._is_back(endpoint):
                return
            async with self._lock:
                if endpoint in self._delivered:
                    return
                if not self._pool.is_up(endpoint):
                    continue  # it has left, or died, while this waited
                failure = (await self._give([endpoint])).get(endpoint)
            if failure is None:
                return
        stays = (
            f"{endpoint} stays at version {self._pool.version_of(endpoint)} after {ATTEMPTS}"
            " attempts"
        )
        raise WeightSyncError(f"{stays}: {failure}") from failure

    async def _is_back(self, endpoint: str) -> bool:
        """Is there an engine to be given the weights? One that is being started again is waited
        for, until any engine has them."""
        if self._pool.is_up(endpoint):
            return True
        if not self._reached.is_set():
            back = asyncio.ensure_future(self._pool.settled(endpoint))
            others = asyncio.ensure_future(self._reached.wait())
            try:
                await asyncio.wait({back, others}, return_when=asyncio.FIRST_COMPLETED)
                if back.done() and back.result():
                    return True
            finally:
                back.cancel()
                others.cancel()
        first = endpoint not in self._left_out
        self._left_out.add(endpoint)
        logger.log(
            logging.WARNING if first else logging.DEBUG,
            "policy version %d leaves out %s: it is down, and is given the weights before it takes"
            " requests, or it is lost for good, or elsewhere now",
            self._staged,
            endpoint,
        )
        return False

    async def _give(self, endpoints: Sequence[str]) -> dict[str, WeightSyncError]:
        """Gives these engines, all at once, what is staged. Returns who did not get it, and why.

        Whatever happens, they go on or are ended, and their gates are open, afterwards. But where
        the learner is lost those whose weights are half replaced are held, until the next one has
        weights for them."""
        failed = await self._meet(endpoints)
        turns = [self._turn(endpoint) for endpoint in endpoints if endpoint not in failed]
        try:
            await each(turns, Turn.begin)
            ready = [turn for turn in turns if turn.error is None]
            await each([turn for turn in turns if turn.error is not None], self._end)
            await self._give_paused(ready)
        except LearnerLostError:
            for turn in turns:
                turn.held = turn.mixed
                if turn.held:
                    self._held[turn.endpoint] = turn
            raise
        finally:
            await shielded(each(turns, self._end))
        return failed | {turn.endpoint: turn.error for turn in turns if turn.error is not None}

    def _turn(self, endpoint: str) -> Turn:
        before = self._held.pop(endpoint, None)
        mode, control = self._cluster.weight_update_mode, self._control(endpoint)
        return Turn(self._pool, control, mode, self._time, self._sleep, before=before)

    async def _meet(self, endpoints: Sequence[str]) -> dict[str, WeightSyncError]:
        """Connects to these engines, without those that cannot be connected to."""
        failed: dict[str, WeightSyncError] = {}
        while rest := [endpoint for endpoint in endpoints if endpoint not in failed]:
            missing = await self._connect(rest)
            if not missing:
                break
            failed |= missing
        return failed

    async def _give_paused(self, turns: Sequence[Turn]) -> None:
        """Loads, again without those who failed where somebody did, and one by one where nobody
        knows who is to blame. Engines go on as soon as they have all."""
        teams = [list(turns)] if turns else []
        while teams:
            team = teams.pop(0)
            await self._load_and_confirm(team)
            again = [turn for turn in team if turn.wants_more] if len(team) > 1 else []
            await each([turn for turn in team if turn not in again], self._end)
            if again:
                logger.warning(
                    "a push to %d engines broke off: %d of them are given everything again",
                    len(team),
                    len(again),
                )
            teams += [again] if 0 < len(again) < len(team) else [[turn] for turn in again]

    async def _load_and_confirm(self, team: Sequence[Turn]) -> None:
        assert self._staged is not None
        missing = await self._meet([turn.endpoint for turn in team])
        for turn in team:
            turn.error = missing.get(turn.endpoint)
        members = [turn for turn in team if turn.error is None]
        if members:
            await self._load(members, self._staged)
        version = self._staged
        await each(
            [turn for turn in members if turn.error is None and turn.mixed],
            lambda turn: turn.confirm(version),
        )

    async def _end(self, turn: Turn) -> None:
        await turn.end()
        self._stall_seconds[turn.endpoint] = turn.stall_seconds
        if turn.confirmed is not None:
            self._delivered.add(turn.endpoint)
            self._left_out.discard(turn.endpoint)
            self._reached.set()


async def each(turns: Sequence[Turn], step: Callable[[Turn], Awaitable[None]]) -> None:
    """One step of all of them, at once. A failure is the turn's own."""
    failures = await settle({turn.endpoint: step(turn) for turn in turns})
    for turn in turns:
        turn.error = failures.get(turn.endpoint, turn.error)
