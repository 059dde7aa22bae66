"""SGLang's router in front of a run's engines (--use-sglang-router)."""

from __future__ import annotations

from pipeline.core.engine_auth import engine_headers
from pipeline.wiring.context import RunContext
from pipeline.wiring.deadlines import request_seconds
from stages.engine.gateway import Gateway
from stages.engine.gateway_pool import GatewayPool
from stages.engine.pool import SGLangPool


def make_gateway(site: RunContext, pool: SGLangPool) -> GatewayPool | None:
    """None where requests go straight to the engines."""
    config, cluster = site.config, site.config.cluster
    if not (cluster.use_sglang_router and config.has_engines):
        return None
    gateway = Gateway(
        policy=cluster.router_policy,
        log_path=site.run_dir.logs / "sglang-router.log",
        timeout_seconds=request_seconds(config),
        api_key=config.sglang.get("api_key"),
    )
    return GatewayPool(
        pool,
        gateway,
        concurrency=cluster.sglang_server_concurrency * config.num_engines,
        max_restarts=cluster.engine_restarts,
        headers=engine_headers(config.sglang),
    )
