"""The configuration: one frozen dataclass for each section of --help, all of them held by `Config`.
Layer 0: no third party is imported here.

A flag is a field's name with dashes and no prefix (`rollout_batch_size` -> `--rollout-batch-size`);
names are slime's where slime has the thing. The comment behind a field, or in the lines right above
it, is its help text. Rules across fields live in configs/rules/."""

from configs.schema.agent import AgentConfig
from configs.schema.algorithm import AlgorithmConfig, Estimator
from configs.schema.args import LIVE_PARTS, Args, absence
from configs.schema.asynchronous import AsyncConfig
from configs.schema.cluster import ClusterConfig
from configs.schema.config import SECTIONS, Config, flags_of, flat_args
from configs.schema.critic import CriticConfig
from configs.schema.data import DataConfig
from configs.schema.distill import DistillConfig
from configs.schema.evaluation import EvalConfig
from configs.schema.mock import MockConfig
from configs.schema.model import ModelConfig
from configs.schema.optim import OPTIMIZER_DEFAULTS, DecayStyle, OptimConfig
from configs.schema.reward import RewardConfig
from configs.schema.rollout import RolloutConfig
from configs.schema.run import RunConfig
from configs.schema.slime_args import shape_args
from configs.schema.tracking import TrackingConfig
from configs.schema.warmup import WarmupConfig

__all__ = [
    "LIVE_PARTS",
    "OPTIMIZER_DEFAULTS",
    "SECTIONS",
    "AgentConfig",
    "AlgorithmConfig",
    "Args",
    "AsyncConfig",
    "ClusterConfig",
    "Config",
    "CriticConfig",
    "DataConfig",
    "DecayStyle",
    "DistillConfig",
    "Estimator",
    "EvalConfig",
    "MockConfig",
    "ModelConfig",
    "OptimConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "TrackingConfig",
    "WarmupConfig",
    "absence",
    "flags_of",
    "flat_args",
    "shape_args",
]
