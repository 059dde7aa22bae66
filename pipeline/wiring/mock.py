"""Simulated engines and learner behind the same protocols: the pipeline around them is the real
one. Imports no model code."""

from __future__ import annotations

from configs.schema import Config
from pipeline.wiring.assemble import Backend
from pipeline.wiring.context import RunContext
from pipeline.wiring.counts import counts_of
from stages.engine.mock import LabelledGenerate, MockEngineClient, MockPool, MockTokenizer
from stages.generate.generate import GenerateStage
from stages.learn.mock import MockLearner
from stages.publish.mock import MockTransport


def mock_backend(site: RunContext) -> Backend:
    config: Config = site.config
    tokenizer = MockTokenizer()
    pool = MockPool(
        num_engines=config.num_engines,
        concurrency=config.cluster.sglang_server_concurrency,
        initial_version=site.clock.policy_version,
        clock=site.time,
    )
    client = MockEngineClient(pool, config.mock, tokenizer, seed=config.run.seed)
    generate = GenerateStage(
        client,
        tokenizer,
        config.rollout,
        site.args,
        evaluation=config.eval,
        current_version=lambda: min(pool.version_of(e) for e in pool.endpoints),
        sampling_seed=config.run.seed if config.seeds_requests else None,
    )
    learner = MockLearner(config.mock, clock=site.time)
    transport = MockTransport(pool, config.mock, clock=site.time)

    async def start() -> None:
        if not config.run.trains_on_records:
            await pool.start()
        if site.snapshot is not None:
            await learner.load(site.snapshot)

    async def close() -> None:
        await transport.close()
        await pool.close()
        await learner.close()

    return Backend(
        tokenizer=tokenizer,
        generate=LabelledGenerate(generate, client),
        learner=learner,
        transport=transport,
        engine_idle_seconds=lambda: dict(zip(pool.endpoints, pool.idle_seconds(), strict=True)),
        watch_engines=lambda tell: setattr(pool, "on_event", tell),
        engine_counts=lambda: counts_of(pool),
        start=start,
        close=close,
        kill_now=pool.kill_now,
    )
