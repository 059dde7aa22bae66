"""How real engines are asked: the same in the driver and in a rollout worker."""

from __future__ import annotations

import json
from copy import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from configs.corrections import asks_for_log_probs
from configs.schema import Config, flat_args
from pipeline.core.engine_auth import engine_headers
from pipeline.core.protocols import EnginePool
from pipeline.run.watchdog import Watchdog
from pipeline.wiring.agents import make_agents
from pipeline.wiring.deadlines import request_seconds, requests_of
from pipeline.wiring.engines import labels_late
from pipeline.wiring.making import make_group_maker
from pipeline.wiring.rollout_workers import oldest_version, share_of
from pipeline.wiring.tool_calls import call_parser
from pipeline.workers.rollout_messages import Bench
from stages.engine.remote_pool import RemotePool
from stages.engine.spec import experts_shape, tokens_per_request
from stages.gateway.agents.rollout import AgentRollouts
from stages.generate.client import SGLangClient
from stages.generate.generate import GenerateStage
from stages.generate.image_prompts import Vision
from stages.generate.through_router import ThroughRouter
from stages.reward import build_reward


def make_client(
    config: Config, folder: Path, device: str, pool: EnginePool, router: ThroughRouter | None = None
) -> SGLangClient:
    """`folder`: the model's. `device`: of the engines. `router`: where the pool is SGLang's."""
    replays = config.algorithm.use_rollout_routing_replay
    return SGLangClient(
        pool,
        config.rollout,
        boundary_is_old=labels_late(config, device),
        timeout_seconds=request_seconds(config),
        experts_shape=experts_shape(folder) if replays else None,
        headers=engine_headers(config.sglang),
        router=router,
    )


def make_stage(
    config: Config,
    args: SimpleNamespace,
    client: SGLangClient,
    tokenizer: Any,
    folder: Path,
    pool: EnginePool,
    agents: AgentRollouts | None,
) -> GenerateStage:
    """Raises ConfigError when the custom function cannot be loaded, or the parser of tool calls is
    not known."""
    args = copy(args)
    args.tool_call_parser = call_parser(config.rollout.tool_call_parser)
    return GenerateStage(
        client,
        tokenizer,
        config.rollout,
        args,
        evaluation=config.eval,
        context_length=context_length(config, folder),
        vision=read_vision(folder),
        current_version=partial(oldest_version, pool),
        sampling_seed=config.run.seed if config.seeds_requests else None,
        log_probs_for=asks_for_log_probs(args),
        maker=agents,
    )


def real_bench(config: Config, folder: Path, device: str, watchdog: Watchdog) -> Bench:
    """What a rollout worker makes groups with. `config`: with what the run has found."""
    args, tokenizer = flat_args(config), read_tokenizer(folder)
    pool = RemotePool(concurrency=share_of(config.cluster))
    client = make_client(config, folder, device, pool)
    agents = make_agents(config, tokenizer, folder)
    generate = make_stage(config, args, client, tokenizer, folder, pool, agents)
    reward = build_reward(config.reward, args)

    async def close() -> None:
        if agents is not None:
            await agents.close()
        await reward.close()
        await client.close()

    make = make_group_maker(config, args, generate, reward, watchdog=watchdog)
    return Bench(pool=pool, make=make, close=close)


def context_length(config: Config, folder: Path) -> int | None:
    """Tokens of prompt and response that the engines take."""
    return tokens_per_request(requests_of(config), folder)


def read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def read_vision(folder: Path) -> Vision | None:
    """The image processor of a model that sees; None for any other model."""
    if "vision_config" not in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        return None
    return Vision.of_folder(folder)
