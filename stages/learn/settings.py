"""What a learner is built from. Imports nothing heavy: the driver makes it, the ranks read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.schema import AlgorithmConfig, ClusterConfig, CriticConfig, ModelConfig, OptimConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """The configuration sections that the learner reads, and what it must know of the run."""

    model: ModelConfig
    algorithm: AlgorithmConfig
    critic: CriticConfig = field(default_factory=CriticConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    megatron: Mapping[str, Any] = field(default_factory=dict)  # Megatron's flags by field name
    num_optimizer_steps: int = 1  # of the whole run: where the learning-rate schedule ends
    # that the engine samples with: log-probs are of softmax(logits / temperature)
    temperature: float = 1.0
    seed: int = 1234
    async_save: bool = False  # snapshots are written while training goes on
    save_optim: bool = True  # snapshots hold optimizer and schedule
    load_optim: bool = True  # and are restored with them

    @property
    def num_ranks(self) -> int:
        return self.cluster.actor_num_nodes * self.cluster.actor_num_gpus_per_node
