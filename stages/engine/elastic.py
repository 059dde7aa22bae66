"""A pool whose engines may come and go while it serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from pipeline.core.errors import EngineError
from stages.engine.pool import SGLangPool
from stages.engine.slot import EngineProcess, Slot

logger = logging.getLogger(__name__)

Says = Callable[[str], None]


class ElasticPool(SGLangPool):
    """Everything goes by the endpoint.

    One that has left is still known, as lost: a push that was under way may ask for it."""

    async def join(self, engine: EngineProcess) -> None:
        """Starts one more engine; it takes requests when it has the current weights. Raises
        EngineError or WeightSyncError, and then it is as if it had never been asked for."""
        endpoint = engine.endpoint
        if self._closed:
            raise EngineError("the run is ending: no engine is added")
        if endpoint in self._slots or any(endpoint == other.endpoint for other in self._joining):
            raise EngineError(f"{endpoint} is in the pool already")
        self._joining.add(engine)
        try:
            await engine.start(self._initial_version, self._start_timeout)
            endpoint = engine.endpoint
            # from here on a push waits for it: it is given what the others get, or is resynced
            self._gone.pop(endpoint, None)
            oldest = min(slot.version for slot in self._slots.values())
            slot = self._slots[endpoint] = self._slot_for(engine, oldest)
            slot.ended = False
            if self.on_restart is not None:
                await self.on_restart(endpoint)
        except BaseException as error:
            engine.kill()
            if endpoint in self._slots:
                self._forget(endpoint, f"could not join ({error or type(error).__name__})")
            await engine.stop()  # it gives its room back
            raise
        finally:
            self._joining.discard(engine)
        self._set_up(slot)
        logger.info("%s has joined at policy version %d", engine.name, slot.version)
        self._tell("start", slot, "it was added")

    async def drain(self, endpoint: str, *, now: bool, says: Says = lambda text: None) -> None:
        """Takes an engine out: it gets no new requests, those in flight end (with `now` they are
        cut off, and asked elsewhere), a push to it is waited for, then it is stopped.

        Raises EngineError for one that is not there, and for the last one."""
        slot = self._leaving(endpoint)
        slot.leaving = True
        self._changed()
        if slot.restarting is not None:
            slot.restarting.cancel()
            await asyncio.wait({slot.restarting})
        if not now:
            says(f"{slot.num_in_flight} requests in flight")
            await self.drained(endpoint)
        await self._leave(slot, says)
        if self._gone.get(endpoint) is not slot:
            return  # the run has ended meanwhile
        await slot.engine.stop()
        logger.info("%s has left the pool", slot.engine.name)
        self._tell("drained", slot, "at once" if now else "when it was empty")

    def rows(self) -> list[dict[str, Any]]:
        """Endpoint, policy version, requests in flight, restarts and state of every engine."""
        joining = [
            {"engine": engine.endpoint, "version": None, "state": "starting"}
            for engine in self._joining
            if engine.endpoint not in self._slots
        ]
        here = [
            {
                "engine": slot.endpoint,
                "version": slot.version if slot.up else None,
                "in_flight": slot.num_in_flight,
                "restarts": slot.restarts,
                "state": slot.state,
            }
            for slot in self._slots.values()
        ]
        return [*here, *({"in_flight": 0, "restarts": 0, **row} for row in joining)]

    async def _leave(self, slot: Slot, says: Says) -> None:
        """Takes the engine out, in no push and with no group of a push half formed: those who form
        one wait for every member."""
        endpoint = slot.endpoint

        def leave() -> None:
            if not slot.gated and self._slots.get(endpoint) is slot:
                self._forget(endpoint, "was drained")

        while self._slots.get(endpoint) is slot:
            if slot.gated:
                says("a push is under way")
                slot.opened.clear()
                await slot.opened.wait()
            elif self.on_leave is not None:
                await self.on_leave(endpoint, leave)
            else:
                leave()

    def _leaving(self, endpoint: str) -> Slot:
        slot = self._slots.get(endpoint)
        if slot is None:
            raise EngineError(f"{endpoint} is not in the pool. There are {', '.join(self._slots)}")
        if slot.leaving:
            raise EngineError(f"{endpoint} is being drained already")
        if not any(other.stays for other in self._slots.values() if other is not slot):
            raise EngineError(
                f"{endpoint} is the last engine, without which nothing is generated. Add one"
                " first, or end the run"
            )
        return slot

    def _forget(self, endpoint: str, why: str) -> None:
        slot = self._slots.pop(endpoint)
        self._gone[endpoint] = slot
        slot.up, slot.ended = False, True
        slot.lost = EngineError(f"{slot.engine.name} {why}")
        slot.settled.set()
        self._changed()
