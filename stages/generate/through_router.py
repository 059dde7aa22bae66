"""What a request needs that goes through SGLang's router instead of straight to an engine.

Measured with sglang-router 0.3.2: it sends on the fields that it knows and drops the others, sends
an engine's headers back, and has no /abort_request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline.core.errors import RefusedRequestError

ROUTING_HEADER = "X-SMG-Routing-Key"  # requests of one key stay at one engine
DROPPED = ("custom_params", "logit_bias")  # sampling parameters


class BehindRouter(Protocol):
    @property
    def engines(self) -> Sequence[str]:
        """Base URLs, behind the router."""


class ThroughRouter:
    def __init__(self, pool: BehindRouter) -> None:
        self._pool = pool

    @property
    def engines(self) -> Sequence[str]:
        """Who may have a request: all of them."""
        return self._pool.engines

    def headers(self, session_id: str | None) -> dict[str, str]:
        return {} if session_id is None else {ROUTING_HEADER: session_id}

    def check(self, params: Mapping[str, Any]) -> None:
        """Raises RefusedRequestError for what would be dropped without a word."""
        for name in DROPPED:
            if params.get(name) is not None:
                raise RefusedRequestError(
                    f"sampling parameter {name}: SGLang's router does not send it on. Drop"
                    " --use-sglang-router, or the parameter"
                )
