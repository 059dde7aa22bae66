"""slime's own flags that have another name here, ask for nothing, or are not there.

A key with a space in it is a flag with one certain value."""

from __future__ import annotations

from collections.abc import Mapping

from configs.command_line.spellings.entries import Absent, Nothing, Ours, Spelling

_DELTA = "--weight-transport delta sends only what has changed"
_TRAJECTORY_SERVER = Absent(
    why="there is no rollout buffer server; the replay buffer is part of the run"
    " (--buffer-durability, --buffer-selector), and --data-source-path or"
    " --custom-generate-function-path fetch from a server of yours"
)
_TEACHER = Nothing(why="--use-opd asks the teacher, of which --rm-url or --opd-teacher-url tells")
_PROFILER = Absent(
    why="there is no profiler flag; metrics.jsonl has the seconds of every part of a step, and"
    " trace.jsonl of the run"
)
_DEEPGEMM = Absent(why="DeepGEMM in the learner is not there; Megatron's own --fp8-format is")
_CI = Absent(why="it belongs to slime's own tests; the metrics are in metrics.jsonl. Drop it")
_HEALTH = Nothing(why="engines are watched and started again always (--engine-restarts)")
_NO_SUCH_SUMS = "no such sums are made; metrics.jsonl and samples.jsonl have rewards and lengths"
_ONE_LEARNER = Absent(
    why="there is one set of Megatron's flags for all roles; the critic's own are --critic-lr,"
    " --critic-lr-warmup-iters, --critic-load"
)

SLIME: Mapping[str, Spelling] = {
    # short names of its small versions
    "backend": Ours(to="train-backend"),
    "tp-size": Ours(to="tensor-model-parallel-size"),
    "num-gpus": Absent(
        why="say whose: --actor-num-gpus-per-node are the learner's, --rollout-num-gpus the"
        " engines'"
    ),
    # cluster and weights
    "update-weight-transport": Ours(
        to="weight-transport", values={"nccl": "distributed"}, said="nccl is distributed"
    ),
    "update-weight-mode": Nothing(
        why="every push sends all weights, but for --weight-transport delta",
        only=("full",),
        otherwise="give --weight-transport delta instead, and drop --update-weight-transport",
    ),
    "update-weight-delta-encoding": Nothing(
        why=f"{_DELTA}; every tensor in the form that is smallest"
    ),
    "update-weight-delta-checksum": Nothing(
        why=f"{_DELTA}, under xxh3-128", only=("xxh3-128",), otherwise="the checksum is xxh3-128"
    ),
    "update-weight-disk-dir": Nothing(
        why="pushes by disk lie in the run directory (--runs-dir: several nodes must share it)"
    ),
    "update-weight-disk-keep-files": Absent(
        why="a push's files are gone once the engines have read them; --save-hf keeps the weights"
        " of every save"
    ),
    "custom-update-weight-post-write-path": Absent(
        why="there is no hook between writing a push and reading it"
    ),
    "release-train": Absent(
        why="the learner's processes stay; --offload-train frees their device memory"
    ),
    "prefill-num-servers": Absent(
        why="engines that only prefill are not there; each does both. Drop it"
    ),
    "rollout-health-check-interval": _HEALTH,
    "rollout-health-check-timeout": _HEALTH,
    "rollout-health-check-first-wait": Ours(
        to="engine-start-timeout-seconds",
        convert=lambda seconds: repr(max(300.0, float(seconds))),
        said="at least 300",
        is_default=True,
    ),
    "http-proxy": Absent(why="set HTTP_PROXY and NO_PROXY in the shell"),
    "use-distributed-post": Nothing(why="requests go straight to the engines"),
    "rollout-data-transport": Nothing(
        why="rollouts reach the learner through the buffer's segments",
        only=("object-store",),
        otherwise="rollouts reach the learner through the buffer's segments, not by NIXL. Drop it",
    ),
    # model and learner
    "model-name": Nothing(why="config.json says which family it is"),
    "recompute-loss-function": Nothing(
        why="log-probs are made chunk by chunk, and made again in"
        " the backward pass (--log-probs-chunk-size)"
    ),
    "only-train-params-name-list": Absent(why="all parameters are trained"),
    "freeze-params-name-list": Absent(why="all parameters are trained"),
    "freeze-indexer": Absent(why="models with sparse attention (GLM-5) are not there"),
    "allgather-cp": Absent(
        why="it is for models with sparse attention (GLM-5), which are not there"
    ),
    "qwen-gdn-backend": Absent(why="Qwen3.5 and Qwen3-Next (linear attention) are not there"),
    "enable-mtp-training": Absent(
        why="multi-token prediction layers are not trained: drop it, and --mtp-num-layers"
    ),
    "padded-vocab-size": Nothing(why="the learner pads the vocabulary as far as its layout needs"),
    "data-pad-size-multiplier": Nothing(why="packs are padded as far as the layout needs"),
    "megatron-config-path": _ONE_LEARNER,
    "megatron-deepgemm-forward-layers": _DEEPGEMM,
    "megatron-deepgemm-forward-modules": _DEEPGEMM,
    "megatron-deepgemm-moe-forward-layers": _DEEPGEMM,
    "megatron-deepgemm-moe-forward-modules": _DEEPGEMM,
    "reset-optimizer-states": Absent(
        why="the optimizer keeps its state from rollout to rollout; --no-load-optim begins anew"
        " with --load"
    ),
    "use-stateless-adam": Absent(why="Adam keeps its moments. Drop it"),
    "ref-ckpt-step": Absent(why="name the step's folder: --ref-load FOLDER/iter_0000100"),
    "opd-teacher-ckpt-step": Absent(
        why="the teacher is a Hugging Face model: --opd-teacher-load FOLDER"
    ),
    # algorithm
    "use-rollout-entropy": Nothing(why="the entropy is in every train record"),
    "keep-old-actor": Absent(
        why="old log-probs of the weights that sampled come from the engines:"
        " --use-rollout-logprobs"
    ),
    "balance-by-flops": Nothing(why="--balance-data, the default, deals out by operations"),
    "disable-compute-advantages-and-returns": Nothing(
        why="--loss-type sft_loss takes no advantages, and a loss of yours need not"
    ),
    "opd-type": Nothing(
        why="--opd-teacher-url names a teacher that is served already, --opd-teacher-load one that"
        " the run serves",
        only=("sglang", "megatron"),
        otherwise="expected sglang or megatron",
    ),
    "custom-rm-path slime.rollout.on_policy_distillation.reward_func": _TEACHER,
    "custom-reward-post-process-path"
    " slime.rollout.on_policy_distillation.post_process_rewards": _TEACHER,
    "dynamic-sampling-filter-path"
    " slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std": Ours(
        to="dynamic-sampling-filter-path zero_std"
    ),
    # data
    "disable-rollout-global-dataset": Nothing(
        why="--data-source-path, where it is given, is the only source of prompts"
    ),
    "rollout-buffer-url": _TRAJECTORY_SERVER,
    "rollout-task-type": _TRAJECTORY_SERVER,
    "fetch-trajectory-retry-times": _TRAJECTORY_SERVER,
    "min-batch-collection-ratio": _TRAJECTORY_SERVER,
    # the rollout function, of which --rollout-function-path names a user's own
    "rollout-function-path slime.rollout.sglang_rollout.generate_rollout": Nothing(
        why="groups are generated so by themselves"
    ),
    "rollout-function-path slime.rollout.fully_async_rollout.generate_rollout_fully_async": Ours(
        to="async-buffer-size 1", is_default=True
    ),
    "rollout-function-path slime.rollout.sft_rollout.generate_rollout": Ours(
        to="loss-type sft_loss", is_default=True
    ),
    "partial-rollout": Nothing(
        why="no sample is cut off at the end of a rollout: it goes on across pushes, each of its"
        " tokens with its policy version (--mask-offpolicy-in-partial-rollout trains the newest"
        " only)"
    ),
    "start-rollout-id": Nothing(
        why="a new run begins with rollout 0, and --load goes on where its checkpoint was",
        only=("0",),
        otherwise="rollouts of a new run begin with 0, and --load RUN goes on where its checkpoint"
        " was. Drop it",
    ),
    # logging and debugging
    "disable-wandb-random-suffix": Nothing(why="names get no random suffix; a taken one a number"),
    "wandb-always-use-train-step": Nothing(why="every record has its step"),
    "log-passrate": Nothing(why="every evaluation has pass@k"),
    "log-multi-turn": Nothing(why=_NO_SUCH_SUMS),
    "log-correct-samples": Nothing(why=_NO_SUCH_SUMS),
    "log-reward-category": Absent(
        why="rewards are not counted by category; --reward-key says which entry is trained on, and"
        " samples.jsonl has them all"
    ),
    "dump-details": Ours(
        to="save-debug-rollout-data",
        convert=lambda folder: f"{folder}/rollout_data/{{rollout_id}}.arrow",
        said="FOLDER/rollout_data/{rollout_id}.arrow",
    ),
    "save-debug-train-data": Absent(
        why="what a rollout trained on is exported from the buffer: --keep-trajectories, then"
        " `python -m pipeline buffer RUN export FILE.parquet`"
    ),
    "load-debug-rollout-data-subsample": Absent(
        why="--load-debug-rollout-data takes whole rollouts"
    ),
    "load-forge-rollout-data": Absent(
        why="--load-debug-rollout-data trains on kept rollouts, without engines"
    ),
    "memory-snapshot-dir": _PROFILER,
    "memory-snapshot-num-steps": _PROFILER,
    "memory-recorder": _PROFILER,
    "profile-target": _PROFILER,
    "ci-test": _CI,
    "ci-disable-kl-checker": _CI,
    "ci-train-rollout-logprob-abs-diff-threshold": _CI,
    "ci-save-grad-norm": _CI,
    "ci-load-grad-norm": _CI,
}
