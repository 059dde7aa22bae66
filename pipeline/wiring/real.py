"""Real engines and a real learner: SGLang servers, Megatron ranks in Ray actors, weights over a
process group or disk."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from pipeline.core.engine_auth import engine_headers
from pipeline.core.flops import read_cost
from pipeline.models.resolve import resolve_checkpoint
from pipeline.wiring.agents import make_agents
from pipeline.wiring.backend import Backend
from pipeline.wiring.context import RunContext
from pipeline.wiring.counts import counts_of
from pipeline.wiring.devices import device_of, device_sharing
from pipeline.wiring.engines import (
    beside,
    first_weights,
    make_membership,
    make_pool,
    make_pools,
    make_teacher,
    teacher_lease,
    with_engine_key,
)
from pipeline.wiring.gateway import make_gateway
from pipeline.wiring.generation import (
    context_length,
    make_client,
    make_stage,
    read_tokenizer,
    read_vision,
    real_bench,
)
from pipeline.wiring.learner_life import LearnerLife
from pipeline.wiring.learner_settings import learner_settings
from pipeline.wiring.model_checks import check_model
from pipeline.wiring.rollout_workers import make_workers, oldest_version
from pipeline.wiring.router import make_router, tell_args
from pipeline.workers.learner_group import LearnerGroup
from pipeline.workers.lent_memory import LentMemory
from pipeline.workers.pools import Pools
from pipeline.workers.ray_cluster import ray_address
from pipeline.workers.turns import TurnTaking
from stages.engine.memory import EngineMemory
from stages.engine.scratch import sweep_stale
from stages.generate.through_router import ThroughRouter
from stages.publish import make_transport

logger = logging.getLogger(__name__)


def real_backend(site: RunContext) -> Backend:
    site = with_engine_key(site)
    config, share = site.config, device_sharing(site.config)
    folder = resolve_checkpoint(config.model.hf_checkpoint or "", seed=config.run.seed)
    check_model(config, folder)
    tokenizer = read_tokenizer(folder)
    device = device_of(config)
    served, headers = first_weights(site, folder), engine_headers(config.sglang)
    pools = make_pools(site, device)
    pool = make_pool(site, served or folder, device, pools)
    gateway = make_gateway(site, pool)
    through = ThroughRouter(gateway) if gateway is not None else None
    client = make_client(config, folder, device, gateway or pool, through)
    router = make_router(
        site,
        client,
        tokenizer,
        model=str(folder.absolute()),
        current_version=partial(oldest_version, pool),
        context_length=context_length(config, folder),
        vision=read_vision(folder),
    )
    told = tell_args(site, router=router, model=str(folder.absolute()))
    learner = LearnerGroup(learner_settings(told, folder, device), pools)
    agents = make_agents(config, tokenizer, folder)
    generate = make_stage(config, site.args, client, tokenizer, folder, pool, agents)
    bench = partial(real_bench, told, folder.absolute(), device)
    workers = make_workers(
        site, pool, lambda _: bench, environment=pools.cluster.temporary_environment
    )
    teacher = make_teacher(site, folder, device, pools)
    engines = (
        EngineMemory(pool, headers=headers)
        if share.rollout and config.has_engines and not config.run.debug_rollout_only
        else None
    )
    transport = make_transport(
        pool,
        learner,
        config.cluster,
        device=device,
        # on several nodes what all of them see is the run's folder
        folder=site.run_dir.path / "weights" if ray_address(config.cluster) else None,
        lender=LentMemory(learner),
        beside=beside(pool, pools),
        headers=headers,
    )
    if engines is not None:
        transport.room = engines.room

    life = LearnerLife(
        site, learner, transport, tokenizer, engines=engines, leaves_devices=share.train
    )

    async def start() -> None:
        """Starts engines and learner side by side; then brings the learner's weights to every
        engine."""
        run, up = config.run, asyncio.Event()
        logger.info(
            "engines and learner come up, which takes a while; what they say: %s", site.run_dir.logs
        )

        async def bring_up() -> None:
            await life.begin()
            up.set()

        if run.debug_rollout_only:
            up.set()
        if config.has_engines:
            router.start()
        async with asyncio.TaskGroup() as both:
            if config.has_engines:
                both.create_task(pool.start() if not share.train else _after(up, pool.start))
            if teacher is not None and config.has_engines:
                both.create_task(teacher.start())
            if not run.debug_rollout_only:
                both.create_task(bring_up())
            if workers is not None:
                both.create_task(_after_start(pools, workers.start))
        warmed_up = site.snapshot is None and config.warmup.sft_steps
        # engines of somebody else's may hold any weights
        other = served is None or warmed_up or config.cluster.rollout_external_engine_addrs
        pushes = config.has_engines and not run.debug_rollout_only
        if pushes and not other and config.cluster.check_weight_update_equal:
            await transport.wipe_loaded()
            other = True
        if other and pushes:
            await transport.push(site.clock.policy_version)
        if gateway is not None:
            await gateway.start()

    async def close() -> None:
        closes = (
            router.close,
            *([workers.close] if workers else []),
            *([agents.close] if agents else []),
            client.close,
            *([gateway.close] if gateway else []),
            transport.close,
            pool.close,
            *([teacher.close] if teacher else []),
            learner.close,
            pools.close,
        )
        for close_part in closes:
            try:
                await close_part()
            except Exception:
                # the others must still be closed
                logger.exception("%s failed", close_part.__qualname__)

    def kill_now() -> None:
        if gateway is not None:
            gateway.kill_now()
        pools.kill_now()
        sweep_stale(Path(tempfile.gettempdir()))  # of the engines, which were on it

    return Backend(
        tokenizer=tokenizer,
        max_prompt_len=config.rollout.rollout_max_prompt_len,
        generate=generate,
        router=router,
        learner=(
            TurnTaking(
                learner, leaves=learner if share.train else None, engines=engines, time=site.time
            )
            if any(share)
            else learner
        ),
        transport=transport,
        engine_idle_seconds=lambda: dict(zip(pool.endpoints, pool.idle_seconds(), strict=True)),
        watch_engines=lambda tell: setattr(pool, "on_event", tell),
        engine_counts=lambda: counts_of(pool),
        membership=make_membership(site, pool, transport, served or folder, device, pools),
        start=start,
        restore_learner=life.restore,
        close=close,
        kill_now=kill_now,
        workers=workers,
        teacher=teacher_lease(site.config.distill.opd_teacher_url, teacher),
        cost=read_cost(
            folder, shares_prompts=device == "cpu" or find_spec("transformer_engine") is None
        ),
    )


async def _after_start(pools: Pools, begin: Callable[[], Awaitable[None]]) -> None:
    await pools.start()
    await begin()


async def _after(ready: asyncio.Event, begin: Callable[[], Awaitable[None]]) -> None:
    """Begins when `ready` is set. Engines measure what is free on a device when they start, so the
    learner must have left it by then."""
    await ready.wait()
    await begin()
