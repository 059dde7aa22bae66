"""The router of a run, and what it tells users' functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from configs.schema import Config, flat_args, shape_args
from pipeline.core.protocols import EngineClient, Tokenizer
from pipeline.wiring.context import RunContext
from pipeline.wiring.model_checks import read_shape
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
    """`model`: the resolved folder, or what stands for it."""
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
    if not site.config.has_engines:
        router.release()  # there is no engine behind it
    return router


def tell_args(site: RunContext, *, router: Router, model: str | None) -> Config:
    """Users' functions find in `args` what is known only now: on the driver from here on, on the
    learner's ranks where they get the configuration that comes back."""
    config = site.config
    shape = {k: v for k, v in shape_args(read_shape(model)).items() if v is not None}
    found = {
        **{name: value for name, value in shape.items() if name not in config.megatron},
        "hf_checkpoint": model,
        "sglang_router_port": router.port,
        "run_dir": str(site.run_dir.path.absolute()),
        "start_rollout_id": site.clock.num_trained,
    }
    told = replace(config, found=found)
    vars(site.args).update(vars(flat_args(told)))
    return told
