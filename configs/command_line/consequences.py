"""What follows from flags that were given for flags that were not, or that say nothing beside
them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from configs.command_line.spellings.reading import Reading
from configs.schema import ClusterConfig, Config


def draw_consequences(
    sections: dict[str, Any], given: Collection[str], reading: Reading
) -> dict[str, Any]:
    """Config's sections, from those that hold just what was said. `given`: names of flags."""
    cluster, megatron = sections["cluster"], sections["megatron"]
    if cluster.colocate and "rollout-num-gpus" not in given:
        cluster = _on_all_devices(cluster)
    if megatron.get("sequence_parallel") and (megatron.get("tensor_model_parallel_size") or 1) == 1:
        megatron = {**megatron, "sequence_parallel": False}
        reading.nothing["--sequence-parallel"] = (
            "it splits sequences over tensor ranks, and --tensor-model-parallel-size is 1"
        )
    rollout = sections["rollout"]
    if Config(**sections).answers_are_given and "n-samples-per-prompt" not in given:
        rollout = dataclasses.replace(rollout, n_samples_per_prompt=1)  # each is trained once
    return {**sections, "cluster": cluster, "megatron": megatron, "rollout": rollout}


def _on_all_devices(cluster: ClusterConfig) -> ClusterConfig:
    """Engines that take turns with the learner have its devices, as in slime."""
    shared = cluster.actor_num_nodes * cluster.actor_num_gpus_per_node
    return dataclasses.replace(cluster, rollout_num_gpus=shared)
