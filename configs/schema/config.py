"""All groups of flags as one configuration, and what follows from several of them."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.schema.agent import AgentConfig
from configs.schema.algorithm import AlgorithmConfig
from configs.schema.args import Args
from configs.schema.asynchronous import AsyncConfig
from configs.schema.cluster import ClusterConfig
from configs.schema.critic import CriticConfig
from configs.schema.data import DataConfig, is_procedural
from configs.schema.distill import DistillConfig
from configs.schema.evaluation import EvalConfig
from configs.schema.marks import SECRET_OPTIONS
from configs.schema.mock import MockConfig
from configs.schema.model import ModelConfig
from configs.schema.optim import OPTIMIZER_DEFAULTS, OptimConfig
from configs.schema.reward import RewardConfig
from configs.schema.rollout import RolloutConfig
from configs.schema.run import RunConfig
from configs.schema.slime_args import FILLED, OFF, counterparts, shape_args
from configs.schema.tracking import TrackingConfig
from configs.schema.warmup import WarmupConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything.

    `sglang` and `megatron` hold what the user said with those families' flags, as typed by the
    user.
    """

    run: RunConfig = field(default_factory=RunConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    async_: AsyncConfig = field(default_factory=AsyncConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    mock: MockConfig = field(default_factory=MockConfig)
    sglang: Mapping[str, Any] = field(default_factory=dict)  # ServerArgs field -> value
    # TransformerConfig / OptimizerConfig / DDP config field -> value
    megatron: Mapping[str, Any] = field(default_factory=dict)
    # what --custom-config-path's file says: attributes of `args`
    custom: Mapping[str, Any] = field(default_factory=dict)
    # what is known when the run starts: the model's folder and shape, the router's port
    found: Mapping[str, Any] = field(default_factory=dict, compare=False)
    # what is to be said when the run starts: flags that were read as others, or ignored
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def staleness_bound(self) -> int:
        """S: the largest staleness, in policy versions, that a token may have when it is trained
        on. By default twice what rollouts in the order of their admission would need, and what
        replay adds; docs/staleness.md says why."""
        a = self.async_
        if a.fixed_staleness:
            return a.async_buffer_size
        if a.max_staleness is not None:
            return a.max_staleness
        ahead = math.ceil(a.async_buffer_size / a.update_weights_interval)
        return 2 * ahead + math.ceil((a.max_times_sampled - 1) / a.update_weights_interval)

    @property
    def overlaps_pushes(self) -> bool:
        """Does the learner go on while engines are given its weights? Without rollouts ahead it
        would only wait for them elsewhere."""
        return self.async_.overlap_push and self.async_.async_buffer_size > 0

    @property
    def deterministic(self) -> bool:
        """--deterministic-mode, Megatron's flag: here it holds for engines and driver too."""
        return bool(self.megatron.get("deterministic_mode"))

    @property
    def seeds_requests(self) -> bool:
        """Does every request carry a seed of its own? Engines heed it in their deterministic mode
        only."""
        own = self.sglang.get("enable_deterministic_inference")
        return self.deterministic if own is None else bool(own)

    @property
    def num_fresh_groups(self) -> int:
        """Groups of a rollout that no rollout before it was trained on; the rest are replayed."""
        return round(self.rollout.rollout_batch_size / self.async_.samples_of_a_group)

    @property
    def samples_per_rollout(self) -> int:
        """Without fan-out."""
        return self.rollout.rollout_batch_size * self.rollout.n_samples_per_prompt

    @property
    def samples_per_step(self) -> int:
        """Of one optimizer step."""
        steps = self.algorithm.num_steps_per_rollout or 1
        return self.algorithm.global_batch_size or self.samples_per_rollout // steps

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps."""
        given = self.algorithm.num_steps_per_rollout
        return given or max(1, self.samples_per_rollout // self.samples_per_step)

    @property
    def has_scorer(self) -> bool:
        """Is there a reward function?"""
        return bool(
            self.reward.rm_type
            or self.reward.custom_rm_path
            or is_procedural(self.data.prompt_data)
            or self.run.mock
        )

    @property
    def tensor_ranks_of_an_engine(self) -> int:
        """Of one of its pipeline stages, where it has several."""
        stages = int(self.sglang.get("pp_size") or 1)
        return self.cluster.rollout_num_gpus_per_engine // stages

    @property
    def answers_are_given(self) -> bool:
        """Trained on the data's own answers: none is sampled or scored."""
        r = self.rollout
        own = r.custom_generate_function_path or r.rollout_function_path or self.agent.has_agent
        return self.algorithm.is_supervised and not own

    @property
    def has_engines(self) -> bool:
        """Is anything generated?"""
        samples = not self.answers_are_given or bool(self.eval.eval_interval)
        return samples and not self.run.trains_on_kept

    @property
    def num_engines(self) -> int:
        external = len(self.cluster.rollout_external_engine_addrs)
        return external or self.cluster.rollout_num_gpus // self.cluster.rollout_num_gpus_per_engine

    @property
    def data_parallel_size(self) -> int:
        """Copies of the model that the learner's ranks make up."""
        together = 1
        for name in (
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "context_parallel_size",
        ):
            together *= max(1, int(self.megatron.get(name) or 1))
        return self.num_learner_ranks // together

    @property
    def num_learner_ranks(self) -> int:
        return self.cluster.actor_num_nodes * self.cluster.actor_num_gpus_per_node


SECTIONS = (
    "run",
    "tracking",
    "model",
    "data",
    "rollout",
    "agent",
    "reward",
    "algorithm",
    "critic",
    "async_",
    "cluster",
    "optim",
    "warmup",
    "distill",
    "eval",
    "mock",
)


def flags_of(config: Config) -> dict[str, Any]:
    """Every flag of ours and the optimizer's by name, and of Megatron's and SGLang's
    (`sglang_...`) those that were given."""
    out: dict[str, Any] = {
        **OPTIMIZER_DEFAULTS,
        **config.megatron,
        **{f"sglang_{k}": v for k, v in config.sglang.items() if k not in SECRET_OPTIONS},
    }
    for section in SECTIONS:
        part = getattr(config, section)
        shown = (f.name for f in dataclasses.fields(part) if not f.metadata.get("secret"))
        out.update({name: getattr(part, name) for name in shown})
    # as in slime: functions hand it to the tokenizer
    out["apply_chat_template_kwargs"] = config.data.template_arguments
    out["train_env_vars"] = config.cluster.train_environment
    return out


def flat_args(config: Config) -> Args:
    """The flat `args` namespace that slime's custom-function signatures take, on the driver and on
    the learner's ranks: the flags, slime's names beside them, the user's own settings, and what the
    run has found."""
    out = {**OFF, **shape_args({}), **counterparts(config), **flags_of(config)}
    for name, value in FILLED.items():
        if out[name] is None:
            out[name] = value(config)
    return Args(**copy.deepcopy({**out, **config.found, **config.custom}))
