"""Simulated engines and a simulated learner behind the same protocols; the pipeline around them is
the real one. No model code is imported."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import yaml

from configs.corrections import asks_for_log_probs
from configs.schema import Config, EvalConfig, MockConfig, RolloutConfig, flat_args
from pipeline.core.protocols import EnginePool
from pipeline.run.watchdog import Watchdog
from pipeline.wiring.agents import make_agents
from pipeline.wiring.backend import Backend
from pipeline.wiring.context import RunContext
from pipeline.wiring.counts import counts_of
from pipeline.wiring.making import make_group_maker
from pipeline.wiring.membership import Membership
from pipeline.wiring.rollout_workers import make_workers, oldest_version, share_of
from pipeline.wiring.router import make_router, tell_args
from pipeline.workers.rollout_messages import Bench
from stages.engine.mock import LabelledGenerate, MockEngineClient, MockPool, MockTokenizer
from stages.engine.mock_remote import MockRemotePool
from stages.gateway.agents.rollout import AgentRollouts
from stages.generate.generate import GenerateStage
from stages.generate.image_prompts import ImageFeatures, Vision, open_image
from stages.learn.mock import MockLearner
from stages.publish.mock import MockTransport
from stages.reward import build_reward

logger = logging.getLogger(__name__)


def mock_backend(site: RunContext) -> Backend:
    config: Config = site.config
    words = tiny_words(config.model.hf_checkpoint)
    rollout, evaluation = config.rollout, config.eval
    if words is None:
        rollout, evaluation = _without_lengths(config)
    tokenizer = make_tokenizer(config)
    pool = MockPool(
        config=config.mock,
        num_engines=config.num_engines,
        concurrency=config.cluster.sglang_server_concurrency,
        initial_version=site.clock.policy_version,
        time=site.time,
    )
    client = MockEngineClient(pool, _that_end(config), tokenizer, seed=config.run.seed)

    router = make_router(
        site,
        client,
        tokenizer,
        model=config.model.hf_checkpoint or "",
        current_version=partial(oldest_version, pool),
        context_length=rollout.rollout_max_context_len,
        vision=_vision(config, tokenizer),
    )
    told = tell_args(site, router=router, model=config.model.hf_checkpoint)
    agents = make_agents(config, tokenizer, config.model.hf_checkpoint)
    generate = _stage(config, rollout, evaluation, site.args, client, tokenizer, pool, agents)
    workers = make_workers(
        site, pool, lambda number: partial(mock_bench, told, rollout, evaluation, number)
    )
    learner = MockLearner(config.mock, time=site.time)
    transport = MockTransport(pool, config.mock, config.cluster, time=site.time)

    async def start() -> None:
        if config.has_engines:
            await pool.start()
            router.start()
        if workers is not None:
            await workers.start()
        if site.snapshot is not None:
            await learner.load(site.snapshot)

    async def restore_learner(snapshot: Path | None) -> None:
        await learner.restart()
        if snapshot is not None:
            await learner.load(snapshot)

    async def close() -> None:
        await router.close()
        if workers is not None:
            await workers.close()
        if agents is not None:
            await agents.close()
        await transport.close()
        await pool.close()
        await learner.close()

    def kill_now() -> None:
        pool.kill_now()
        if workers is not None:
            workers.kill_now()

    return Backend(
        tokenizer=tokenizer,
        max_prompt_len=rollout.rollout_max_prompt_len,
        generate=generate,
        router=router,
        learner=learner,
        transport=transport,
        engine_idle_seconds=lambda: dict(zip(pool.endpoints, pool.idle_seconds(), strict=True)),
        watch_engines=lambda tell: setattr(pool, "on_event", tell),
        engine_counts=lambda: counts_of(pool),
        membership=Membership(pool, pool.make_engine, None, used=range(config.num_engines)),
        start=start,
        restore_learner=restore_learner,
        close=close,
        kill_now=kill_now,
        workers=workers,
        counts_tokens=words is not None,
    )


def mock_bench(
    config: Config, rollout: RolloutConfig, evaluation: EvalConfig, number: int, watchdog: Watchdog
) -> Bench:
    """What the rollout worker of this number makes groups with."""
    cluster, args = config.cluster, flat_args(config)
    tokenizer = make_tokenizer(config)
    pool = MockRemotePool(
        config=config.mock, num_processes=cluster.num_rollout_workers, concurrency=share_of(cluster)
    )
    client = MockEngineClient(pool, _that_end(config), tokenizer, seed=config.run.seed + number)
    agents = make_agents(config, tokenizer, config.model.hf_checkpoint)
    generate = _stage(config, rollout, evaluation, args, client, tokenizer, pool, agents)
    reward = build_reward(config.reward, args)

    async def close() -> None:
        if agents is not None:
            await agents.close()
        await reward.close()

    make = make_group_maker(config, args, generate, reward, watchdog=watchdog)
    return Bench(pool=pool, make=make, close=close)


def _stage(
    config: Config,
    rollout: RolloutConfig,
    evaluation: EvalConfig,
    args: SimpleNamespace,
    client: MockEngineClient,
    tokenizer: MockTokenizer,
    pool: EnginePool,
    agents: AgentRollouts | None,
) -> LabelledGenerate:
    stage = GenerateStage(
        client,
        tokenizer,
        rollout,
        args,
        evaluation=evaluation,
        current_version=partial(oldest_version, pool),
        sampling_seed=config.run.seed if config.seeds_requests else None,
        vision=_vision(config, tokenizer),
        log_probs_for=asks_for_log_probs(args),
        maker=agents,
    )
    return LabelledGenerate(stage, client)


def _vision(config: Config, tokenizer: MockTokenizer) -> Vision | None:
    return Blindfold(tokenizer) if config.data.image_key else None


class Blindfold(Vision):
    """Reads the images of a prompt as the real one does, and sees nothing: the text is all there
    is."""

    def __init__(self, tokenizer: MockTokenizer) -> None:
        self._tokenizer, self.image_token_id = tokenizer, -1
        self._cached = lru_cache(maxsize=64)(self._see)

    def _see(self, text: str, urls: tuple[str, ...]) -> ImageFeatures:
        for url in urls:
            open_image(url)
        return ImageFeatures(tuple(self._tokenizer.encode(text)), {})


def make_tokenizer(config: Config) -> MockTokenizer:
    return MockTokenizer(tiny_words(config.model.hf_checkpoint) or ())


def tiny_words(spec: str | None) -> tuple[str, ...] | None:
    """The words that are tokens of their own in a `tiny:` model, whose other tokens are bytes. None
    for any other model: how its tokenizer counts is not known here."""
    if spec is None or not spec.startswith("tiny:"):
        return None
    shape = yaml.safe_load(Path(spec.removeprefix("tiny:")).expanduser().read_text("utf-8"))
    return tuple(shape.get("words") or ())


def _that_end(config: Config) -> MockConfig:
    """Response lengths of which a fair share ends within --rollout-max-response-len."""
    limit = config.rollout.rollout_max_response_len
    if config.mock.mock_length_mean <= limit:
        return config.mock
    return replace(config.mock, mock_length_mean=max(1.0, limit / 2))


def _without_lengths(config: Config) -> tuple[RolloutConfig, EvalConfig]:
    """The configuration without bounds on prompts: these are in tokens of the model, of which one
    is several bytes."""
    names = [
        f"{kind}_max_{what}_len" for kind in ("rollout", "eval") for what in ("prompt", "context")
    ]
    given = {**asdict(config.rollout), **asdict(config.eval)}
    bounds = [name for name in names if given[name] is not None]
    if bounds:
        flags = " and ".join("--" + name.replace("_", "-") for name in bounds)
        logger.warning(
            "--mock: simulated engines count bytes, not the model's tokens: %s not applied",
            f"{flags} are" if len(bounds) > 1 else f"{flags} is",
        )
    return (
        replace(config.rollout, rollout_max_prompt_len=None, rollout_max_context_len=None),
        replace(config.eval, eval_max_prompt_len=None, eval_max_context_len=None),
    )
