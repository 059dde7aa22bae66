"""The settings that a learner is built from. Nothing heavy is imported: the driver makes them, the
ranks read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.schema import (
    AlgorithmConfig,
    ClusterConfig,
    Config,
    CriticConfig,
    ModelConfig,
    OptimConfig,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """The run's configuration, with folders in the place of what names a model, and what follows
    from the run."""

    config: Config = field(default_factory=Config)
    num_optimizer_steps: int = 1  # of the whole run: where the learning-rate schedule ends

    @property
    def model(self) -> ModelConfig:
        return self.config.model

    @property
    def algorithm(self) -> AlgorithmConfig:
        return self.config.algorithm

    @property
    def critic(self) -> CriticConfig:
        return self.config.critic

    @property
    def optim(self) -> OptimConfig:
        return self.config.optim

    @property
    def cluster(self) -> ClusterConfig:
        return self.config.cluster

    @property
    def megatron(self) -> Mapping[str, Any]:
        """Megatron's flags by field name."""
        return self.config.megatron

    @property
    def temperature(self) -> float:
        """The temperature at which the engine samples: log-probs are of softmax(logits /
        temperature)."""
        return self.config.rollout.rollout_temperature

    @property
    def seed(self) -> int:
        return self.config.run.seed

    @property
    def num_ranks(self) -> int:
        return self.config.num_learner_ranks
