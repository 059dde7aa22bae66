"""The router of a run, and what it tells users' functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from configs.schema import Config
from pipeline.core.protocols import EngineClient, Tokenizer
from pipeline.wiring.context import RunContext
from stages.generate.image_prompts import Vision
from stages.generate.router import Router


def make_router(
    site: RunContext,
    client: EngineClient,
    tokenizer: Tokenizer,
    *,
    model: str,
    current_version: Callable[[], int],
    context_length: int | None = None,
    vision: Vision | None = None,
) -> Router:
    """Its address is in the run's `args` from here on.

    `model`: the resolved folder, or what stands for it.
    """
    cluster = site.config.cluster
    router = Router(
        client,
        tokenizer,
        host=cluster.sglang_router_ip,
        port=cluster.sglang_router_port,
        model=model,
        current_version=current_version,
        context_length=context_length,
        vision=vision,
        time=site.time,
    )
    site.args.sglang_router_port = router.port
    if not site.config.has_engines:
        router.release()  # there is no engine behind it
    return router


def with_address(config: Config, router: Router) -> Config:
    """For the learner's ranks: their `args` say the same as the driver's."""
    return replace(config, cluster=replace(config.cluster, sglang_router_port=router.port))
