"""--use-sglang-router: what does not go through SGLang's router."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from configs.schema import Config

FLAG = "--use-sglang-router"


def sglang_router(config: Config) -> Iterator[str]:
    cluster = config.cluster
    if not cluster.use_sglang_router or config.run.mock:
        return
    if find_spec("sglang_router") is None:
        yield (
            f"{FLAG}: the package sglang-router is not installed. `pip install"
            " sglang-router==0.3.2`, or drop the flag"
        )
    if cluster.router_policy == "power_of_two":
        yield (
            f"{FLAG} with --router-policy power_of_two: SGLang's router begins with two engines or"
            " not at all under it, and here it begins empty. Use consistent_hashing"
        )
    if config.algorithm.use_rollout_routing_replay:
        yield (
            f"{FLAG} with --use-rollout-routing-replay: SGLang's router does not send on that the"
            " experts are asked for. Drop one"
        )
    if cluster.rollout_external_engine_addrs:
        yield (
            f"{FLAG} with --rollout-external-engine-addrs: behind it, nobody can tell which engine"
            " was started anew by whoever runs it. Drop one"
        )
    if cluster.num_rollout_workers:
        yield (
            f"{FLAG} with --num-rollout-workers {cluster.num_rollout_workers}: workers choose"
            " engines by themselves. Drop one"
        )
