"""Real engines and a real learner: SGLang servers, Megatron ranks in Ray actors, weights over a
process group or disk."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from configs.schema import Config
from pipeline.core.devices import has_gpu
from pipeline.core.errors import CheckpointError
from pipeline.core.find_checkpoint import find_torch_dist
from pipeline.core.flops import read_cost
from pipeline.models.resolve import resolve_checkpoint
from pipeline.run.warmup import warm_up
from pipeline.wiring.assemble import Backend
from pipeline.wiring.context import RunContext
from pipeline.wiring.counts import counts_of
from pipeline.wiring.model_checks import check_model
from pipeline.workers.learner_group import LearnerGroup
from pipeline.workers.turns import TurnTaking
from stages.batch import make_batch
from stages.engine.launch import Engine
from stages.engine.memory import EngineMemory
from stages.engine.pool import SGLangPool
from stages.engine.spec import (
    EngineSpec,
    engine_cpus,
    engine_devices,
    experts_shape,
    tokens_per_request,
)
from stages.generate.client import SGLangClient
from stages.generate.generate import GenerateStage
from stages.generate.image_prompts import Vision
from stages.learn.settings import LearnerSettings
from stages.publish import make_transport
from stages.reward import Lease
from stages.source import answered, build_source, sft_pairs

logger = logging.getLogger(__name__)


def real_backend(site: RunContext) -> Backend:
    config, share = site.config, _sharing(site.config)
    folder = resolve_checkpoint(config.model.hf_checkpoint or "", seed=config.run.seed)
    check_model(config, folder)
    tokenizer = _tokenizer(folder)
    device = _device(config)
    served = _first_weights(site, folder)
    pool = _pool(site, served or folder, device)
    learner = LearnerGroup(_settings(config, folder, device))
    client = SGLangClient(
        pool,
        config.rollout,
        boundary_is_old=device == "cuda" and not config.sglang.get("disable_overlap_schedule"),
        experts_shape=(
            experts_shape(folder) if config.algorithm.use_rollout_routing_replay else None
        ),
    )
    generate = GenerateStage(
        client,
        tokenizer,
        config.rollout,
        site.args,
        evaluation=config.eval,
        context_length=tokens_per_request(config.rollout, folder),
        vision=_vision(folder),
        current_version=lambda: min(pool.version_of(e) for e in pool.endpoints),
        sampling_seed=config.run.seed if config.seeds_requests else None,
    )
    teacher = _teacher(site, device)
    engines = (
        EngineMemory(pool)
        if share.rollout and not (config.run.trains_on_records or config.run.debug_rollout_only)
        else None
    )
    transport = make_transport(pool, learner, config.cluster, device=device)

    pairs = _warmup_pairs(site, tokenizer)

    async def start() -> None:
        """Engines and learner come up side by side; then the learner's weights are on every
        engine."""
        run, up = config.run, asyncio.Event()
        logger.info(
            "engines and learner come up, which takes a while; what they say: %s", site.run_dir.logs
        )

        async def bring_up() -> None:
            await _bring_up(site, learner, pairs)
            if share.train:
                await learner.offload()
            up.set()

        if run.debug_rollout_only:
            up.set()
        async with asyncio.TaskGroup() as both:
            if not run.trains_on_records:
                both.create_task(pool.start() if not share.train else _after(up, pool.start))
            if teacher is not None and not run.trains_on_records:
                both.create_task(teacher.start())
            if not run.debug_rollout_only:
                both.create_task(bring_up())
        warmed_up = site.snapshot is None and config.warmup.sft_steps
        if (served is None or warmed_up) and not (run.trains_on_records or run.debug_rollout_only):
            await transport.push(site.clock.policy_version)

    async def close() -> None:
        closes = (
            client.close,
            transport.close,
            pool.close,
            *([teacher.close] if teacher else []),
            learner.close,
        )
        for close_part in closes:
            try:
                await close_part()
            except Exception:
                # the others must still be closed
                logger.exception("%s failed", close_part.__qualname__)

    def kill_now() -> None:
        pool.kill_now()
        if teacher is not None:
            teacher.kill_now()
        learner.kill_now()

    return Backend(
        tokenizer=tokenizer,
        max_prompt_len=config.rollout.rollout_max_prompt_len,
        generate=generate,
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
        start=start,
        close=close,
        kill_now=kill_now,
        teacher=_lease_of(site.config.distill.opd_teacher_url, teacher),
        cost=read_cost(
            folder, shares_prompts=device == "cpu" or find_spec("transformer_engine") is None
        ),
    )


def _warmup_pairs(site: RunContext, tokenizer: Any) -> Iterator[tuple[list[int], list[int]]] | None:
    """Judged before anything starts. None where there is no warm-up."""
    config = site.config
    if site.snapshot is not None or not config.warmup.sft_steps:
        return None
    source = build_source(
        config.warmup.sft_data or config.data.prompt_data,
        config.data,
        1,
        config.rollout.rollout_max_prompt_len,
        tokenizer,
        # A procedural task is seeded apart from the rollouts: the warm-up must not show their
        # prompts.
        seed=config.data.rollout_seed + 1,
        judge=answered,
    )
    return sft_pairs(source, tokenizer)


async def _bring_up(
    site: RunContext, learner: LearnerGroup, pairs: Iterator[tuple[list[int], list[int]]] | None
) -> None:
    config = site.config
    await learner.start()
    if site.snapshot is not None:
        await learner.load(site.snapshot)
        return
    if pairs is not None:
        cut = partial(make_batch, micro_batch_size=config.algorithm.samples_of_a_micro_batch)
        await warm_up(
            learner, pairs, config.warmup, config.algorithm, config.data_parallel_size, cut
        )


class DeviceSharing(NamedTuple):
    """Who leaves the devices that learner and engines share."""

    train: bool
    rollout: bool


def _sharing(config: Config) -> DeviceSharing:
    """By the flags; without them both do under --colocate on GPUs, as in slime."""
    c = config.cluster
    default = c.offload or (c.colocate and _device(config) == "cuda")
    train = default if c.offload_train is None else c.offload_train
    rollout = default if c.offload_rollout is None else c.offload_rollout
    if rollout and _device(config) == "cpu":
        logger.warning(
            "--offload-rollout: SGLang has no memory saver on a CPU, the engines keep theirs"
        )
    return DeviceSharing(train, rollout)


async def _after(ready: asyncio.Event, begin: Callable[[], Awaitable[None]]) -> None:
    """Engines measure what is free on a device when they start: the learner must have left it."""
    await ready.wait()
    await begin()


def _first_weights(site: RunContext, folder: Path) -> Path | None:
    """The Hugging Face folder of the weights that the learner begins with; None when there is none:
    they are pushed then."""
    if site.snapshot is not None:
        found = site.snapshot / "hf" if (site.snapshot / "hf").is_dir() else None
    else:
        found = folder if site.config.model.initial_megatron_checkpoint is None else None
    if found is None and site.config.run.debug_rollout_only:
        raise CheckpointError(
            "--debug-rollout-only: engines read Hugging Face folders, and"
            f" {site.snapshot or '--initial-megatron-checkpoint'} has none: convert it (python -m"
            " pipeline convert torch-dist-to-hf) and give the folder as --hf-checkpoint"
        )
    return found


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def _vision(folder: Path) -> Vision | None:
    """The image processor of a model that sees."""
    if "vision_config" not in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        return None
    return Vision.of_folder(folder)


def _device(config: Config) -> Literal["cpu", "cuda"]:
    device = config.model.device
    if device != "auto":
        return device
    return "cuda" if has_gpu() else "cpu"


def _dtype(config: Config, device: str) -> Literal["float32", "bfloat16"]:
    dtype = config.model.dtype
    if dtype != "auto":
        return dtype
    return "bfloat16" if device == "cuda" else "float32"


def _teacher(site: RunContext, device: str) -> SGLangPool | None:
    """One more engine, behind the policy's."""
    config, distill = site.config, site.config.distill
    if not (distill.use_opd and distill.opd_teacher_load):
        return None
    folder = resolve_checkpoint(distill.opd_teacher_load, seed=config.run.seed)
    spec = _engine_spec(site, config.num_engines, folder, device)
    return _pool_of(
        [Engine(dataclasses.replace(spec, log_path=site.run_dir.logs / "teacher.log"))], site
    )


def _lease_of(url: str | None, teacher: SGLangPool | None) -> Lease | None:
    if teacher is not None:
        return teacher.lease
    if url is None:
        return None

    @asynccontextmanager
    async def lease() -> AsyncIterator[str]:
        yield url.rstrip("/")

    return lease


def _pool(site: RunContext, model_path: Path, device: str) -> SGLangPool:
    replays = site.config.algorithm.use_rollout_routing_replay
    specs = [_engine_spec(site, i, model_path, device) for i in range(site.config.num_engines)]
    return _pool_of(
        [Engine(dataclasses.replace(spec, returns_experts=replays)) for spec in specs], site
    )


def _engine_spec(site: RunContext, index: int, model_path: Path, device: str) -> EngineSpec:
    config, cluster = site.config, site.config.cluster
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return EngineSpec(
        index=index,
        model_path=model_path,
        log_path=site.run_dir.logs / f"engine-{index}.log",
        device=device,
        dtype=_dtype(config, device),
        tp_size=cluster.rollout_num_gpus_per_engine,
        cuda_devices=(
            engine_devices(index, cluster, os.environ.get("CUDA_VISIBLE_DEVICES"))
            if device == "cuda"
            else ()
        ),
        threads=cluster.cpu_threads_per_engine,
        cpus=engine_cpus(index, cluster, cores) if device == "cpu" else (),
        concurrency=cluster.sglang_server_concurrency,
        tokens_per_request=tokens_per_request(config.rollout, model_path),
        seed=config.run.seed,
        user={**_asked(config, device), **config.sglang},
    )


def _asked(config: Config, device: str) -> dict[str, Any]:
    """SGLang's options that follow from flags of ours; the user's own --sglang-* go over them."""
    out: dict[str, Any] = {}
    if config.seeds_requests:
        out["enable_deterministic_inference"] = True
    if device == "cuda" and _sharing(config).rollout:
        out["enable_memory_saver"] = True
    return out


def _pool_of(engines: list[Engine], site: RunContext) -> SGLangPool:
    cluster = site.config.cluster
    return SGLangPool(
        engines,
        concurrency=cluster.sglang_server_concurrency,
        max_restarts=cluster.engine_restarts,
        start_timeout_seconds=cluster.engine_start_timeout_seconds,
        initial_version=site.clock.policy_version,
        time=site.time,
    )


def _settings(config: Config, folder: Path, device: Literal["cpu", "cuda"]) -> LearnerSettings:
    model = dataclasses.replace(
        config.model,
        hf_checkpoint=str(folder.absolute()),
        device=device,
        dtype=_dtype(config, device),
    )
    if model.initial_megatron_checkpoint:
        initial = find_torch_dist(
            Path(model.initial_megatron_checkpoint), "--initial-megatron-checkpoint"
        )
        model = dataclasses.replace(model, initial_megatron_checkpoint=str(initial.absolute()))
    algorithm = config.algorithm
    if algorithm.ref_load:
        algorithm = dataclasses.replace(
            algorithm, ref_load=str(_reference(algorithm.ref_load, config.run.seed).absolute())
        )
    return LearnerSettings(
        config=dataclasses.replace(config, model=model, algorithm=algorithm),
        num_optimizer_steps=config.run.num_rollout * config.steps_per_rollout,
    )


def _reference(spec: str, seed: int) -> Path:
    """--ref-load's folder: torch_dist, or anything that --hf-checkpoint takes."""
    if Path(spec).is_dir() and not (Path(spec) / "config.json").is_file():
        return find_torch_dist(Path(spec), "--ref-load")
    return resolve_checkpoint(spec, seed=seed)
