"""--weight-transport tensor: which engines can be told where in the learner's memory they find
its weights."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import Config

FLAG = "--weight-transport tensor"


def shared_memory(config: Config) -> Iterator[str]:
    if config.cluster.weight_transport != "tensor":
        return
    for why in apart(config):
        yield f"{FLAG}: {why}. Use --weight-transport disk"


def apart(config: Config) -> Iterator[str]:
    """Why some engine has no device, or not the very same, in common with a rank of the learner."""
    cluster = config.cluster
    if not cluster.colocate:
        yield "without --colocate, engines have devices of their own, and no memory of the learner"
    if cluster.actor_num_nodes > 1:
        yield (
            f"--actor-num-nodes {cluster.actor_num_nodes}: memory is lent on the machine of the run"
            " alone"
        )
    if cluster.rollout_num_gpus > config.num_learner_ranks:
        yield (
            f"--rollout-num-gpus {cluster.rollout_num_gpus} with {config.num_learner_ranks} learner"
            " ranks: some engines share no device with the learner"
        )
    for flag in ("pp_size", "dp_size"):
        if int(config.sglang.get(flag) or 1) > 1:
            yield (
                f"--sglang-{flag.replace('_', '-')} {config.sglang[flag]}: SGLang takes handles by"
                " tensor-parallel rank alone"
            )
