"""The engines of a real run, and the teacher's."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from configs.rules.external_engines import external_endpoints
from configs.schema import Config
from pipeline.core.engine_auth import engine_headers
from pipeline.core.errors import CheckpointError, ConfigError
from pipeline.schedule.placement import Wanted
from pipeline.wiring.context import RunContext
from pipeline.wiring.deadlines import engine_start_seconds, requests_of
from pipeline.wiring.devices import device_sharing, dtype_of
from pipeline.wiring.membership import Membership
from pipeline.wiring.teacher_folder import teacher_folder
from pipeline.workers.hosted_engine import HostedEngine
from pipeline.workers.pools import Pools
from pipeline.workers.ray_cluster import ray_address
from pipeline.workers.store_size import object_store_bytes
from stages.engine.elastic import ElasticPool
from stages.engine.external import ExternalEngine
from stages.engine.external_fit import ExternalFit
from stages.engine.pool import SGLangPool
from stages.engine.slot import EngineProcess
from stages.engine.spec import EngineSpec, tokens_per_request
from stages.publish.rolling import RollingTransport
from stages.reward import Lease


def first_weights(site: RunContext, folder: Path) -> Path | None:
    """The Hugging Face folder of the weights that the learner begins with. None when there is no
    such folder: the weights are pushed to the engines then."""
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


def with_engine_key(site: RunContext) -> RunContext:
    """The same run with a key for its engines, where others could reach them: on a cluster that is
    joined. One of the user's own is kept. It is made for this run, and written down nowhere."""
    sglang = site.config.sglang
    if ray_address(site.config.cluster) is None or engine_headers(sglang):
        return site
    if site.config.cluster.rollout_external_engine_addrs:  # they have a key of their own, or none
        return site
    key = {"api_key": secrets.token_urlsafe(32)}
    return dataclasses.replace(
        site, config=dataclasses.replace(site.config, sglang={**sglang, **key})
    )


def make_pools(site: RunContext, device: str) -> Pools:
    """Where learner and engines go; the teacher is one more engine."""
    config, cluster = site.config, site.config.cluster
    own = 0 if cluster.rollout_external_engine_addrs else config.num_engines
    engines = own + _serves_teacher(config) if config.has_engines else 0
    return Pools(
        Wanted(
            actor_num_nodes=0 if config.run.debug_rollout_only else cluster.actor_num_nodes,
            actor_num_gpus_per_node=cluster.actor_num_gpus_per_node,
            engines=(cluster.rollout_num_gpus_per_engine,) * engines,
            num_gpus_per_node=cluster.num_gpus_per_node,
            colocate=cluster.colocate,
        ),
        address=ray_address(cluster),
        on_gpu=device == "cuda",
        guessed=config.model.device == "auto",
        object_store_bytes=object_store_bytes(config),
    )


def _serves_teacher(config: Config) -> bool:
    return bool(config.distill.use_opd and config.distill.opd_teacher_load)


def make_teacher(site: RunContext, policy: Path, device: str, pools: Pools) -> SGLangPool | None:
    """One more engine, whose devices come after the policy's engines. None where no teacher is to
    be served. `policy`: the policy's Hugging Face folder."""
    config, distill = site.config, site.config.distill
    if not (distill.opd_teacher_load and _serves_teacher(config)):
        return None
    place = site.run_dir.path / "teacher"
    folder = teacher_folder(distill.opd_teacher_load, policy, place, seed=config.run.seed)
    spec = _engine_spec(site, config.num_engines, folder, device)
    spec = dataclasses.replace(spec, log_path=site.run_dir.logs.absolute() / "teacher.log")
    return _pool_of([_hosted(site, spec, pools)], site)


def teacher_lease(url: str | None, teacher: SGLangPool | None) -> Lease | None:
    if teacher is not None:
        return teacher.lease
    if url is None:
        return None

    @asynccontextmanager
    async def lease() -> AsyncIterator[str]:
        yield url.rstrip("/")

    return lease


def make_pool(site: RunContext, model_path: Path, device: str, pools: Pools) -> ElasticPool:
    addresses = external_endpoints(site.config)
    if addresses:
        return _pool_of([_external(site, at, model_path, device) for at in addresses], site)
    indices = range(site.config.num_engines)
    return _pool_of([_engine(site, i, model_path, device, pools) for i in indices], site)


def beside(pool: ElasticPool, pools: Pools) -> Callable[[str], Sequence[int]]:
    """See `stages.publish.tensor.Beside`."""

    def ranks(endpoint: str) -> Sequence[int]:
        engine = dict(zip(pool.endpoints, pool.processes, strict=True)).get(endpoint)
        if not isinstance(engine, HostedEngine):
            raise ConfigError(
                f"--weight-transport tensor: {endpoint} is an engine that somebody else runs, and"
                " is not told of memory of ours. Use --weight-transport disk or distributed"
            )
        return pools.ranks_beside(engine.spec.index)

    return ranks


def make_membership(
    site: RunContext,
    pool: ElasticPool,
    transport: RollingTransport,
    model_path: Path,
    device: str,
    pools: Pools,
) -> Membership:
    config = site.config
    own = 0 if config.cluster.rollout_external_engine_addrs else config.num_engines
    teacher = {config.num_engines} if config.distill.opd_teacher_load else set()

    def why_fixed() -> str | None:
        if not any(device_sharing(config)) and not config.cluster.colocate:
            return None
        return "engines share the learner's devices (--colocate): there are as many as there are"

    def why_not_take() -> str | None:
        if transport.has_staged:
            return None
        return (
            "no weights have been pushed yet, which it would be given: add it after the first push"
        )

    return Membership(
        pool,
        lambda index: _engine(site, index, model_path, device, pools),
        lambda at: _external(site, at, model_path, device),
        used=(*range(own), *teacher),
        why_fixed=why_fixed,
        why_not_take=why_not_take,
    )


def _engine(
    site: RunContext, index: int, model_path: Path, device: str, pools: Pools
) -> EngineProcess:
    replays = site.config.algorithm.use_rollout_routing_replay
    spec = _engine_spec(site, index, model_path, device)
    return _hosted(site, dataclasses.replace(spec, returns_experts=replays), pools)


def _hosted(site: RunContext, spec: EngineSpec, pools: Pools) -> EngineProcess:
    pinned = site.config.cluster.cpu_affinity and spec.device == "cpu"
    return HostedEngine(spec, pools, cpu_affinity=pinned)


def _external(site: RunContext, at: str, model_path: Path, device: str) -> EngineProcess:
    headers = engine_headers(site.config.sglang)
    return ExternalEngine(at, _external_fit(site.config, model_path, device), headers=headers)


def _external_fit(config: Config, model_path: Path, device: str) -> ExternalFit:
    return ExternalFit(
        model_path=model_path,
        num_devices=config.cluster.rollout_num_gpus_per_engine,
        overlap=samples_ahead(config, device),
        returns_experts=config.algorithm.use_rollout_routing_replay,
        user={**sglang_options(config, device), **config.sglang},
    )


def samples_ahead(config: Config, device: str) -> bool:
    """Do engines run with overlap scheduling, a step ahead of their version labels?"""
    return device == "cuda" and not config.sglang.get("disable_overlap_schedule")


def labels_late(config: Config, device: str) -> bool:
    """Was the first token with a new version's label still sampled by the old weights? Engines that
    sample ahead record it when they see it. --weight-update-mode retract lets them first finish the
    step under way (SGLang's Scheduler.pause_generation), and with drain there is none."""
    return samples_ahead(config, device) and config.cluster.weight_update_mode == "in_place"


def _engine_spec(site: RunContext, index: int, model_path: Path, device: str) -> EngineSpec:
    config, cluster = site.config, site.config.cluster
    return EngineSpec(
        index=index,
        model_path=model_path.absolute(),  # a host has a working directory of its own
        log_path=site.run_dir.logs.absolute() / f"engine-{index}.log",
        device=device,
        dtype=dtype_of(config, device),
        tp_size=config.tensor_ranks_of_an_engine,
        threads=cluster.cpu_threads_per_engine,
        concurrency=cluster.sglang_server_concurrency,
        tokens_per_request=tokens_per_request(requests_of(config), model_path),
        seed=config.run.seed,
        user={**sglang_options(config, device), **config.sglang},
    )


def sglang_options(config: Config, device: str) -> dict[str, Any]:
    """SGLang's options that follow from flags of ours; the user's own --sglang-* take
    precedence."""
    out: dict[str, Any] = {}
    if config.seeds_requests:
        out["enable_deterministic_inference"] = True
    if device == "cuda" and device_sharing(config).rollout:
        out["enable_memory_saver"] = True
        # a turn may end without a push (a save, an interval above 1): what is released without a
        # copy on the host is not there when it is resumed
        out["enable_weights_cpu_backup"] = True
    return out


def _pool_of(engines: Sequence[EngineProcess], site: RunContext) -> ElasticPool:
    cluster = site.config.cluster
    return ElasticPool(
        engines,
        concurrency=cluster.sglang_server_concurrency,
        max_restarts=cluster.engine_restarts,
        start_timeout_seconds=engine_start_seconds(site.config),
        initial_version=site.clock.policy_version,
        time=site.time,
    )
