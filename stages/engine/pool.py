"""Several engines of one policy: who serves the next request, who is well, and which policy version
each one serves.

Everything runs on one event loop, so the state below needs no locks: what is checked without an
await in between holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from pipeline.core.errors import ConfigError, EngineError, ForgottenWeightsError, NoRoomError
from pipeline.core.time import IdleMeter, MonotonicTime, TimeSource
from stages.engine.leases import Leases
from stages.engine.slot import EngineProcess, PoolStatistics, Slot
from stages.engine.view import Elsewhere, EngineView, PoolView

logger = logging.getLogger(__name__)

BACKOFF_SECONDS = 1.0  # before a dead engine's restart; doubles with every one that fails
BACKOFF_MAX_SECONDS = 30.0
ROOM_SECONDS = 5.0  # between two looks for room, at most

OnRestart = Callable[[str], Awaitable[None]]
OnLeave = Callable[[str, Callable[[], None]], Awaitable[None]]
OnEvent = Callable[[str, str, str], None]
Sleep = Callable[[float], Awaitable[None]]


class SGLangPool:
    """`pipeline.core.protocols.EnginePool` over real servers, and the gate that weight transports
    use."""

    def __init__(
        self,
        engines: Sequence[EngineProcess],
        *,
        concurrency: int,
        max_restarts: int,
        start_timeout_seconds: float,
        initial_version: int = 0,
        time: TimeSource | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`initial_version`: the policy version of the checkpoint that the engines load when they
        start."""
        self._time = time or MonotonicTime()
        self._slots = {e.endpoint: self._slot_for(e, initial_version) for e in engines}
        self._gone: dict[str, Slot] = {}  # that were drained: a push may still ask for them
        if len(self._slots) != len(engines) or not engines:
            raise ConfigError(
                f"{len(engines)} engines at {len(self._slots)} addresses: each needs its own (leave"
                " --sglang-port out)"
            )
        self._leases = Leases(self._slots, concurrency)
        self._max_restarts, self._start_timeout = max_restarts, start_timeout_seconds
        self._initial_version = self._newest = initial_version  # newest: that any confirmed
        self._sleep = sleep
        self._num_changes = self._num_restarts = 0
        self._restarting: set[asyncio.Task[None]] = set()
        self._joining: set[EngineProcess] = set()  # that are being started to be added
        self._closed = False
        self.on_restart: OnRestart | None = None
        """Brings a restarted engine to the current weights, before it takes requests. Set by
        whoever publishes weights."""
        self.on_leave: OnLeave | None = None
        """Ends what is agreed with an engine that is to leave, and calls the function, which takes
        it out, between two pushes. Set by whoever publishes weights."""
        self.on_event: OnEvent | None = None
        """Told (event, endpoint, reason) of every death, restart and loss of an engine. Set by
        whoever keeps records."""
        self.elsewhere: Elsewhere | None = None
        """Those who lease in other processes; told of every change."""

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts all engines at once. Raises the first EngineError; then none is left running."""
        try:
            async with asyncio.TaskGroup() as group:
                for slot in self._slots.values():
                    group.create_task(slot.engine.start(self._initial_version, self._start_timeout))
        except BaseExceptionGroup as errors:
            await self.close()
            raise next(
                (e for e in errors.exceptions if isinstance(e, EngineError)), errors.exceptions[0]
            ) from None
        self._readdress()
        for slot in self._slots.values():
            self._set_up(slot)

    async def close(self) -> None:
        """Ends all engines; whoever waits for one gets an EngineError. It may be called more than
        once."""
        self._closed = True
        self.kill_now()
        for task in self._restarting:
            task.cancel()
        if self._restarting:
            await asyncio.wait(set(self._restarting))
        for slot in self._slots.values():
            self._lose(slot, EngineError(f"{slot.engine.name} was closed"))
        async with asyncio.TaskGroup() as group:
            for slot in self._slots.values():
                group.create_task(slot.engine.stop())

    def kill_now(self) -> None:
        """Ends all engine processes at once, without an event loop."""
        for engine in (*(slot.engine for slot in self._slots.values()), *self._joining):
            engine.kill()

    # -- requests ----------------------------------------------------------------------------------

    @property
    def processes(self) -> Sequence[EngineProcess]:
        """In the order of `endpoints`."""
        return tuple(slot.engine for slot in self._slots.values())

    @property
    def endpoints(self) -> Sequence[str]:
        return tuple(self._slots)

    def version_of(self, endpoint: str) -> int:
        """What it serves. One that serves nothing now will have what any other has been given."""
        return self._version(self._slot(endpoint))

    def _version(self, slot: Slot) -> int:
        return slot.version if slot.up else max(self._newest, slot.version)

    def lease(self, session_id: str | None = None) -> AbstractAsyncContextManager[str]:
        """See `Leases`."""
        return self._leases.lease(session_id)

    def view(self) -> PoolView:
        """The engines as those see them who lease in other processes."""
        return PoolView(
            number=self._num_changes,
            engines=tuple(
                EngineView(
                    endpoint=slot.endpoint,
                    version=self._version(slot),
                    is_open=slot.is_open,
                    is_leaving=slot.leaving,
                    lost=None if slot.lost is None else str(slot.lost),
                )
                for slot in self._slots.values()
            ),
        )

    def count_elsewhere(self, who: str, in_flight: Mapping[str, int]) -> None:
        """How many requests somebody in another process has in flight, by endpoint."""
        for endpoint, num in in_flight.items():
            if endpoint in self._slots:
                self._slots[endpoint].count_elsewhere(who, num)

    async def report_failure(self, endpoint: str, error: Exception) -> None:
        """Asks the engine for a sign of life; a dead or hanging one is ended and started again,
        while everything else goes on. A paused engine does not generate and is not dead, so during
        a push only its HTTP server is asked. One that forgot its weights needs no asking."""
        slot = self._slot(endpoint)
        # a thousand requests may fail at once: one check answers them all
        async with slot.checking:
            if not slot.up or self._closed:
                return
            if isinstance(error, ForgottenWeightsError):
                return self.condemn(endpoint, str(error))
            if slot.engine.alive and await slot.engine.healthy(
                deep=isinstance(error, TimeoutError) and not slot.gated
            ):
                return
            self.condemn(
                endpoint,
                f"it failed a request ({type(error).__name__}: {error}) and its health check",
            )

    # -- weights -----------------------------------------------------------------------------------

    def begin_push(self, endpoint: str) -> None:
        """From here on no new request goes to this engine.

        Requests in flight stay where they are.
        """
        self._slot(endpoint).gated = True
        self._changed()

    def end_push(self, endpoint: str, version: int | None) -> None:
        """Opens the gate.

        `version`: what the engine has confirmed; None leaves it at its old one."""
        slot = self._slot(endpoint)
        slot.gated = False
        slot.opened.set()
        if version is not None:
            slot.version = version
            self._newest = max(self._newest, version)
        self._changed()

    async def drained(self, endpoint: str) -> None:
        """Waits until no request is in flight at this engine; behind `begin_push` it stays so."""
        await self._leases.drained(self._slot(endpoint))
        if self.elsewhere is not None:
            await self.elsewhere.drained(endpoint)

    async def settled(self, endpoint: str) -> bool:
        """Waits while the engine is being restarted.

        True when it is up, False when it is lost for good, or has come back at another address.
        """
        slot = self._slot(endpoint)
        await slot.settled.wait()
        return slot.lost is None and slot.endpoint == endpoint

    def is_up(self, endpoint: str) -> bool:
        """Its process is there and nobody has ended it. It may still be waiting for its weights."""
        slot = self._slot(endpoint)
        return not slot.ended and slot.engine.alive

    def condemn(self, endpoint: str, reason: str) -> None:
        """Ends this engine now and starts it again: it is dead, hangs, or holds weights of no
        version."""
        slot = self._slot(endpoint)
        if not slot.up or self._closed:
            return
        logger.warning(
            "%s is ended and started again: %s. Its log ends with:\n%s",
            slot.engine.name,
            reason,
            slot.engine.log_tail(),
        )
        slot.up, slot.ended = False, True
        slot.settled.clear()
        self._changed()
        slot.engine.kill()
        self._tell("death", slot, reason)
        if slot.leaving:
            return self._lose(slot, EngineError(f"{slot.engine.name} died while it was drained"))
        task = asyncio.create_task(self._restart(slot, reason), name=f"restart {slot.engine.name}")
        slot.restarting = task
        self._restarting.add(task)
        task.add_done_callback(self._restarting.discard)

    async def on_nodes(self, endpoint: str, work: Callable[..., Any], *args: Any) -> list[Any]:
        """Calls a function of a module on every node of this engine, on a thread of a process that
        lives as long as the engine or longer. Raises what it raises, and EngineError."""
        return await self._slot(endpoint).engine.on_nodes(work, *args)

    # -- figures -----------------------------------------------------------------------------------

    def idle_seconds(self) -> tuple[float, ...]:
        """For every engine the seconds since construction in which it had no request in flight."""
        return tuple(slot.meter.idle_seconds for slot in self._slots.values())

    def statistics(self) -> PoolStatistics:
        slots = self._slots.values()
        return PoolStatistics(
            num_engines=len(slots),
            num_healthy=sum(slot.up for slot in slots),
            num_in_flight=tuple(slot.num_in_flight for slot in slots),
            num_waiting=self._leases.num_waiting,
            num_restarts=self._num_restarts,
            idle_seconds=self.idle_seconds(),
            versions=tuple(map(self._version, slots)),
        )

    # -- inside ------------------------------------------------------------------------------------

    def _slot_for(self, engine: EngineProcess, version: int) -> Slot:
        return Slot(engine, IdleMeter(self._time), version)

    def _slot(self, endpoint: str) -> Slot:
        return self._slots.get(endpoint) or self._gone[endpoint]

    def _readdress(self) -> None:
        """Engines have an address once they are started, and another one on another node. Nobody is
        at the old one, which a push may still ask for."""
        slots = dict(self._slots)
        self._slots.clear()  # those who lease have this very dictionary
        for old, slot in slots.items():
            self._slots[slot.endpoint] = slot
            self._gone.pop(slot.endpoint, None)
            if slot.endpoint != old:
                left = self._gone[old] = self._slot_for(slot.engine, slot.version)
                left.lost = EngineError(f"{old} is at {slot.endpoint} now")
                left.settled.set()

    def _changed(self) -> None:
        """Tells those who lease."""
        self._num_changes += 1
        if self.elsewhere is not None:
            self.elsewhere.follow(self.view())
        self._leases.hand_out()

    async def _restart(self, slot: Slot, reason: str) -> None:
        """Starts the engine again until it is up with the current weights, or its restarts are used
        up."""
        error: Exception = EngineError(reason)
        backoff = BACKOFF_SECONDS
        while slot.restarts < self._max_restarts:
            await self._sleep(backoff)
            backoff = min(2 * backoff, BACKOFF_MAX_SECONDS)
            slot.restarts += 1
            self._num_restarts += 1
            try:
                await slot.engine.start(self._initial_version, self._start_timeout)
                self._readdress()
                slot.version, slot.ended = self._initial_version, False
                if self.on_restart is not None:
                    await self.on_restart(slot.engine.endpoint)
            except Exception as failure:
                # whatever it was: the engine must not serve, and those who wait must hear of it
                if isinstance(failure, NoRoomError) and self._waits_for_room(slot, failure):
                    backoff = min(backoff, ROOM_SECONDS)
                    continue
                logger.error(
                    "restart %d of %d of %s failed: %s",
                    slot.restarts,
                    self._max_restarts,
                    slot.engine.name,
                    failure,
                )
                error, slot.ended = failure, True
                slot.engine.kill()
            else:
                logger.info("%s is back at policy version %d", slot.engine.name, slot.version)
                self._set_up(slot)
                self._tell("restart", slot, reason)
                return
        given_up = (
            f"{slot.engine.name} is given up after {slot.restarts} restarts (--engine-restarts"
            f" {self._max_restarts}): {error}"
        )
        self._lose(slot, EngineError(given_up))
        self._tell("lost", slot, given_up)

    def _waits_for_room(self, slot: Slot, why: NoRoomError) -> bool:
        """An engine that has no room now is no engine that fails: the run goes on without it, as
        long as there are others, and it is started on the first node that has room."""
        if not any(o.stays and not o.lacks_room for o in self._slots.values() if o is not slot):
            return False
        slot.restarts -= 1
        self._num_restarts -= 1
        if not slot.lacks_room:
            slot.lacks_room = True
            logger.warning("the run goes on with fewer engines until there is room: %s", why)
            self._tell("no_room", slot, str(why))
        return True

    def _tell(self, event: str, slot: Slot, reason: str) -> None:
        if self.on_event is not None:
            self.on_event(event, slot.engine.endpoint, reason)

    def _died(self, slot: Slot, how: str) -> None:
        """It ended by itself; nobody has to run into it first."""
        if self._slots.get(slot.endpoint) is slot:
            self.condemn(slot.endpoint, f"it {how}")

    def _set_up(self, slot: Slot) -> None:
        slot.engine.on_death = partial(self._died, slot)
        slot.up, slot.ended, slot.gated, slot.lacks_room = True, False, False, False
        slot.settled.set()
        self._changed()

    def _lose(self, slot: Slot, error: EngineError) -> None:
        slot.up, slot.lost, slot.lacks_room = False, error, False
        slot.settled.set()
        logger.log(logging.DEBUG if self._closed else logging.ERROR, "%s", error)
        if not any(other.stays for other in self._slots.values()):
            self._leases.fail(EngineError(f"no engine is left. The last to go: {error}"))
        self._changed()
