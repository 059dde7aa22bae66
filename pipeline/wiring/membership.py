"""Engines that are added to a running job, and drained from it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from configs.rules.external_engines import endpoint_of
from pipeline.core.errors import ConfigError
from stages.engine.elastic import ElasticPool
from stages.engine.slot import EngineProcess

Refusal = Callable[[], str | None]


class Membership:
    """`pipeline.run.pool_channel.EngineMembership`."""

    def __init__(
        self,
        pool: ElasticPool,
        make: Callable[[int], EngineProcess],
        take: Callable[[str], EngineProcess] | None,
        *,
        used: Collection[int],
        why_fixed: Refusal = lambda: None,
        why_not_take: Refusal = lambda: None,
    ) -> None:
        """`make`: the engine of an index, like the others. `take`: one that somebody else runs at
        a URL; None where there are none such. `used`: indices that are not to be given: those of
        the engines in the pool, in its order, come first. `why_fixed`: why engines cannot come and
        go now; `why_not_take`: why none of somebody else's can come."""
        self._pool, self._make, self._take = pool, make, take
        self._numbered = list(zip(pool.processes, used, strict=False))
        self._reserved = set(used) - {index for _, index in self._numbered}
        self._why_fixed, self._why_not_take = why_fixed, why_not_take

    def rows(self) -> list[dict[str, Any]]:
        return self._pool.rows()

    async def add(self, address: str | None) -> str:
        """Returns the endpoint of the new engine when it takes requests."""
        self._refuse(self._why_fixed)
        if address is not None:
            return await self._add_external(address)
        here = {row["engine"] for row in self._pool.rows()}
        taken = {index for engine, index in self._numbered if engine.endpoint in here}
        index = next(i for i in range(len(here) + len(self._reserved) + 1) if self._free(i, taken))
        engine = self._make(index)
        self._numbered.append((engine, index))
        await self._pool.join(engine)
        return engine.endpoint

    async def drain(self, engine: str, *, now: bool, says: Callable[[str], None]) -> None:
        self._refuse(self._why_fixed)
        await self._pool.drain(self._known(engine), now=now, says=says)

    async def _add_external(self, address: str) -> str:
        if self._take is None:
            raise ConfigError(f"add {address}: simulated engines have no addresses")
        self._refuse(self._why_not_take)
        engine = self._take(_endpoint(address))
        await self._pool.join(engine)
        return engine.endpoint

    def _known(self, engine: str) -> str:
        """The endpoint that is meant; what is none is the pool's to refuse."""
        try:
            return engine if engine in self._pool.endpoints else endpoint_of(engine)
        except ValueError:
            return engine

    def _free(self, index: int, taken: Collection[int]) -> bool:
        return index not in taken and index not in self._reserved

    def _refuse(self, why: Refusal) -> None:
        if (reason := why()) is not None:
            raise ConfigError(reason)


def _endpoint(address: str) -> str:
    try:
        return endpoint_of(address)
    except ValueError as error:
        raise ConfigError(f"{address}: {error}. Expected host:port") from error
