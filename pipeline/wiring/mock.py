"""Simulated engines and a simulated learner behind the same protocols; the pipeline around them is
the real one. No model code is imported."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import yaml

from configs.corrections import asks_for_log_probs
from configs.schema import Config, EvalConfig, MockConfig, RolloutConfig
from pipeline.wiring.backend import Backend
from pipeline.wiring.context import RunContext
from pipeline.wiring.counts import counts_of
from pipeline.wiring.router import make_router, tell_args
from stages.engine.mock import LabelledGenerate, MockEngineClient, MockPool, MockTokenizer
from stages.generate.generate import GenerateStage
from stages.generate.image_prompts import ImageFeatures, Vision, open_image
from stages.learn.mock import MockLearner
from stages.publish.mock import MockTransport

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

    def current_version() -> int:
        return min(pool.version_of(e) for e in pool.endpoints)

    vision = Blindfold(tokenizer) if config.data.image_key else None
    router = make_router(
        site,
        client,
        tokenizer,
        model=config.model.hf_checkpoint or "",
        current_version=current_version,
        context_length=rollout.rollout_max_context_len,
        vision=vision,
    )
    tell_args(site, router=router, model=config.model.hf_checkpoint)
    generate = GenerateStage(
        client,
        tokenizer,
        rollout,
        site.args,
        evaluation=evaluation,
        current_version=current_version,
        sampling_seed=config.run.seed if config.seeds_requests else None,
        vision=vision,
        log_probs_for=asks_for_log_probs(site.args),
    )
    learner = MockLearner(config.mock, time=site.time)
    transport = MockTransport(pool, config.mock, config.cluster, time=site.time)

    async def start() -> None:
        if config.has_engines:
            await pool.start()
            router.start()
        if site.snapshot is not None:
            await learner.load(site.snapshot)

    async def close() -> None:
        await router.close()
        await transport.close()
        await pool.close()
        await learner.close()

    return Backend(
        tokenizer=tokenizer,
        max_prompt_len=rollout.rollout_max_prompt_len,
        generate=LabelledGenerate(generate, client),
        router=router,
        learner=learner,
        transport=transport,
        engine_idle_seconds=lambda: dict(zip(pool.endpoints, pool.idle_seconds(), strict=True)),
        watch_engines=lambda tell: setattr(pool, "on_event", tell),
        engine_counts=lambda: counts_of(pool),
        start=start,
        close=close,
        kill_now=pool.kill_now,
        counts_tokens=words is not None,
    )


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
