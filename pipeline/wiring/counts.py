"""The figures of a pool of engines, as records show them."""

from __future__ import annotations

from stages.engine.pool import SGLangPool


def counts_of(pool: SGLangPool) -> dict[str, int]:
    found = pool.statistics()
    return {
        "num_engines": found.num_engines,
        "num_healthy": found.num_healthy,
        "num_running": sum(found.num_in_flight),
        "num_restarts": found.num_restarts,
    }
