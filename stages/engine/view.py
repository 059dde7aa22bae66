"""What a pool tells those who lease its engines in other processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    endpoint: str
    version: int  # the policy version that it last confirmed
    is_open: bool  # it is well, and no push is under way
    lost: str | None  # why it will not come back
    is_leaving: bool = False  # it ends what it has, and takes no more


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    number: int  # grows with every change: an older view that comes late is of no use
    engines: tuple[EngineView, ...]


class Elsewhere(Protocol):
    """Those who lease in other processes, as the pool asks them."""

    def follow(self, view: PoolView) -> None:
        """Something has changed: tell them."""

    async def drained(self, endpoint: str) -> None:
        """Returns when all of them know that the engine is gated and have no request there."""
