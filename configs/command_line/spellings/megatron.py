"""Arguments of Megatron-LM's training script that are no field of a configuration class of
Megatron-core, and so no flag here by themselves."""

from __future__ import annotations

from collections.abc import Mapping

from configs.command_line.spellings.entries import Absent, Nothing, Ours, Spelling

_OWN_DATA = Absent(why="prompts come from --prompt-data, not from tokenised documents")
_TOKENIZER = "the tokenizer is that of --hf-checkpoint"
_LOOP = Absent(
    why="the length of a run is --num-rollout, with --num-steps-per-rollout or --global-batch-size"
)
_LOGGED = Nothing(why="every step is a record of metrics.jsonl")
_TIMERS = Nothing(why="metrics.jsonl has the seconds of every step")
_TENSORBOARD = Nothing(why="--use-tensorboard writes every record into RUN_DIR/tensorboard")
_MANUAL_GC = Nothing(why="Python's garbage collection is left as it is")
_NO_PROFILER = Absent(why="there is no profiler flag; metrics.jsonl has the seconds of every step")
_LAYOUT_OF_CHECKPOINTS = Nothing(
    why="checkpoints are torch_dist, written by all ranks and resharded when they are read"
)
_ONE_LOGGER = Nothing(why="nothing is sent to NVIDIA's one-logger")
_LEGACY = Absent(why="models are Megatron-core's. Drop it")
_SAMPLES = Absent(why="schedules count optimizer steps: --lr-decay-iters, --lr-warmup-iters")
_RANDOM_STATE = Nothing(why="what is random follows from --seed and the rollout's number")
_BERT = Absent(why="it is for encoders, and policies here are decoders")

MEGATRON_LM: Mapping[str, Spelling] = {
    # other words for a field
    "accumulate-allreduce-grads-in-fp32": Ours(to="grad-reduce-in-fp32"),
    "apply-layernorm-1p": Ours(to="layernorm-zero-centered-gamma"),
    "decoder-first-pipeline-num-layers": Ours(to="num-layers-in-first-pipeline-stage"),
    "decoder-last-pipeline-num-layers": Ours(to="num-layers-in-last-pipeline-stage"),
    "use-gated-attention": Ours(to="attention-output-gate"),
    "fp8-format": Ours(to="fp8"),
    "fp4-format": Ours(to="fp4"),
    "te-rng-tracker": Ours(to="use-te-rng-tracker"),
    "no-initialization": Ours(to="no-perform-initialization"),
    "grad-reduce-in-bf16": Ours(to="no-grad-reduce-in-fp32"),
    "check-for-nan-in-loss-and-grad": Ours(to="check-for-nan-in-grad"),
    "no-check-for-nan-in-loss-and-grad": Ours(to="no-check-for-nan-in-grad"),
    "ddp-bucket-size": Ours(to="bucket-size"),
    "ddp-average-in-collective": Ours(to="average-in-collective"),
    "no-overlap-p2p-communication": Ours(to="no-overlap-p2p-comm"),
    "overlap-p2p-communication-warmup-flush": Ours(to="overlap-p2p-comm-warmup-flush"),
    "microbatch-group-size-per-virtual-pipeline-stage": Ours(
        to="microbatch-group-size-per-vp-stage"
    ),
    "no-bias-swiglu-fusion": Ours(to="no-bias-activation-fusion"),
    "no-bias-gelu-fusion": Ours(to="no-bias-activation-fusion"),
    "no-query-key-layer-scaling": Ours(to="no-apply-query-key-layer-scaling"),
    "no-barrier-with-level-1-timing": Ours(to="no-barrier-with-L1-time"),
    "recompute-activations": Ours(to="recompute-granularity selective"),
    "use-flash-attn": Ours(to="attention-backend flash"),
    "use-torch-fsdp2": Ours(to="train-backend fsdp"),
    "pretrained-checkpoint": Ours(to="initial-megatron-checkpoint"),
    # the model, which the checkpoint describes
    "spec": Nothing(
        why="config.json decides which layers the model has",
        only=("slime_plugins.models.glm4 get_glm_spec",),
        otherwise="layers follow from config.json's model_type (docs/models.md has the families);"
        " there is no specification of another",
    ),
    "use-mcore-models": Nothing(why="models are Megatron-core's"),
    "use-legacy-models": _LEGACY,
    "no-position-embedding": Nothing(why="positions are rotary, there is no embedding of them"),
    "make-vocab-size-divisible-by": Nothing(
        why="the learner pads the vocabulary as far as its layout needs"
    ),
    "tokenizer-type": Nothing(
        why=_TOKENIZER,
        only=("HuggingFaceTokenizer", "NullTokenizer"),
        otherwise=f"{_TOKENIZER}. Drop it",
    ),
    "tokenizer-model": Nothing(why=_TOKENIZER),
    "vocab-file": Nothing(why=_TOKENIZER),
    "merge-file": Nothing(why=_TOKENIZER),
    "vocab-extra-ids": Nothing(why=_TOKENIZER),
    "tiktoken-pattern": Nothing(why=_TOKENIZER),
    "seq-length": Nothing(
        why="sequences are as long as their samples (--rollout-max-context-len bounds them)"
    ),
    "encoder-seq-length": _BERT,
    "decoder-seq-length": _BERT,
    "encoder-num-layers": _BERT,
    "decoder-num-layers": Ours(to="num-layers"),
    "bert-no-binary-head": _BERT,
    "relative-attention-num-buckets": _BERT,
    "openai-gelu": Absent(why="families here are gated: the checkpoint says silu or gelu"),
    "squared-relu": Absent(why="families here are gated: the checkpoint says silu or gelu"),
    "onnx-safe": Absent(why="the learner exports no ONNX"),
    "export-te-mcore-model": Absent(why="--save-hf writes the model for transformers"),
    "init-method-xavier-uniform": Absent(why="weights come from --hf-checkpoint"),
    "data-parallel-random-init": Nothing(why="weights come from --hf-checkpoint"),
    "moe-use-upcycling": Absent(why="experts come from --hf-checkpoint"),
    "enable-experimental": Nothing(why="what Megatron-core calls experimental is not held back"),
    "yaml-cfg": Absent(why="a YAML list of flags is --config FILE"),
    "kitchen-config-file": Absent(why="quantisation by Kitchen is not there"),
    "qkv-format": Nothing(
        why="sequences are packed", only=("thd",), otherwise="sequences are packed (thd). Drop it"
    ),
    # length, batches and data
    "train-iters": _LOOP,
    "train-samples": _LOOP,
    "exit-interval": _LOOP,
    "exit-duration-in-mins": Absent(
        why="send SIGTERM: the run finishes its step, saves and closes (timeout --signal=TERM)"
    ),
    "exit-signal-handler": Nothing(why="SIGTERM always saves and closes"),
    "rampup-batch-size": Absent(why="every rollout has the same size: --rollout-batch-size"),
    "decrease-batch-size-if-needed": Nothing(why="--global-batch-size must divide the rollout"),
    "skip-train": Ours(to="debug-rollout-only"),
    "eval-iters": Absent(why="an evaluation takes all of --eval-prompt-data"),
    "eval-micro-batch-size": Nothing(why="engines evaluate, the learner does not"),
    "data-path": _OWN_DATA,
    "pretrain-data-path": _OWN_DATA,
    "train-data-path": _OWN_DATA,
    "valid-data-path": _OWN_DATA,
    "test-data-path": _OWN_DATA,
    "split": _OWN_DATA,
    "data-cache-path": _OWN_DATA,
    "mock-data": Absent(why="--mock simulates engines and learner; data are --prompt-data's"),
    "mmap-bin-files": _OWN_DATA,
    "no-mmap-bin-files": _OWN_DATA,
    "dataloader-type": Nothing(why="prompts are read by the driver (--rollout-shuffle)"),
    "num-workers": Nothing(why="prompts are read by the driver"),
    "num-dataset-builder-threads": Nothing(why="prompts are read by the driver"),
    "no-create-attention-mask-in-dataloader": Nothing(why="packed sequences need no mask"),
    "reset-position-ids": Nothing(why="every sequence of a pack has positions of its own"),
    "reset-attention-mask": Nothing(why="no sequence of a pack sees another"),
    "eod-mask-loss": Absent(why="what is trained on is said by sample.loss_mask"),
    # learning rate and numbers
    "lr-decay-samples": _SAMPLES,
    "lr-wsd-decay-samples": _SAMPLES,
    "lr-warmup-samples": _SAMPLES,
    "override-opt_param-scheduler": Nothing(why="with --load, a flag that is given wins"),
    "override-opt-param-scheduler": Nothing(why="with --load, a flag that is given wins"),
    "use-checkpoint-opt_param-scheduler": Nothing(why="--load restores the schedule"),
    "use-checkpoint-opt-param-scheduler": Nothing(why="--load restores the schedule"),
    "head-lr-mult": Absent(why="all parameters have one learning rate, --lr"),
    "no-weight-decay-cond-type": Absent(why="weight decay is as in Megatron-core. Drop it"),
    "fp16-lm-cross-entropy": Absent(why="the loss is computed in float32"),
    # checkpoints
    "ckpt-format torch": _LAYOUT_OF_CHECKPOINTS,
    "use-dist-ckpt": _LAYOUT_OF_CHECKPOINTS,
    "auto-detect-ckpt-format": _LAYOUT_OF_CHECKPOINTS,
    "ckpt-fully-parallel-save": _LAYOUT_OF_CHECKPOINTS,
    "ckpt-fully-parallel-load": _LAYOUT_OF_CHECKPOINTS,
    "ckpt-assume-constant-structure": _LAYOUT_OF_CHECKPOINTS,
    "use-persistent-ckpt-worker": _LAYOUT_OF_CHECKPOINTS,
    "dist-ckpt-format": _LAYOUT_OF_CHECKPOINTS,
    "dist-ckpt-strictness": _LAYOUT_OF_CHECKPOINTS,
    "no-ckpt-fully-parallel-save": Absent(why="checkpoints are always written by all ranks"),
    "ckpt-convert-format": Absent(why="`python -m pipeline convert` converts checkpoints"),
    "non-persistent-save-interval": Absent(why="--async-save writes checkpoints beside training"),
    "non-persistent-ckpt-type": Absent(why="--async-save writes checkpoints beside training"),
    "load-main-params-from-ckpt": Nothing(why="--load restores the optimizer's own weights"),
    "finetune": Nothing(why="--hf-checkpoint and --initial-megatron-checkpoint begin anew"),
    "ckpt-step": Absent(why="name the checkpoint: --load RUN_DIR/checkpoints/rollout_NNNNNN"),
    "use-checkpoint-args": Nothing(why="the shape is that of config.json"),
    "use-mp-args-from-checkpoint-args": Absent(
        why="checkpoints are resharded: say the layout with --tensor-model-parallel-size and others"
    ),
    "exit-on-missing-checkpoint": Nothing(why="a --load that names nothing is refused"),
    "no-save-rng": _RANDOM_STATE,
    "no-load-rng": _RANDOM_STATE,
    # processes
    "distributed-backend": Nothing(
        why="the device decides (NCCL, or gloo on CPUs)",
        only=("nccl", "gloo"),
        otherwise="expected nccl or gloo",
    ),
    "distributed-timeout-minutes": Nothing(why="ranks wait thirty minutes for each other"),
    "local-rank": Nothing(why="Ray starts the ranks"),
    "lazy-mpu-init": Nothing(why="Ray starts the ranks"),
    "model-parallel-size": Ours(to="tensor-model-parallel-size"),
    "pipeline-model-parallel-split-rank": _BERT,
    "num-virtual-stages-per-pipeline-rank": Ours(to="virtual-pipeline-model-parallel-size"),
    "no-scatter-gather-tensors-in-pipeline": Nothing(why="stages exchange whole tensors"),
    "no-align-grad-reduce": Nothing(why="it is a matter of speed only"),
    "ddp-num-buckets": Absent(why="say a bucket's size: --ddp-bucket-size"),
    "nccl-communicator-config-path": Absent(why="set NCCL's variables in the shell"),
    "use-tp-pp-dp-mapping": Absent(why="ranks are numbered in Megatron's default order. Drop it"),
    "use-sharp": Absent(why="set NCCL_COLLNET_ENABLE in the shell"),
    "tp-comm-overlap-cfg": Absent(why="--tp-comm-overlap takes TransformerEngine's own choice"),
    "disable-tp-comm-overlap-ag": Ours(to="no-tp-comm-overlap-ag"),
    "disable-tp-comm-overlap-rs": Ours(to="no-tp-comm-overlap-rs"),
    "disable-tp-comm-bulk-dgrad": Ours(to="no-tp-comm-bulk-dgrad"),
    "disable-tp-comm-bulk-wgrad": Ours(to="no-tp-comm-bulk-wgrad"),
    "manual-gc": _MANUAL_GC,
    "manual-gc-interval": _MANUAL_GC,
    "manual-gc-eval": _MANUAL_GC,
    "no-manual-gc-eval": _MANUAL_GC,
    "train-sync-interval": _TIMERS,
    "check-for-spiky-loss": Absent(why="the loss is in every train record"),
    "check-weight-hash-across-dp-replicas-interval": Absent(
        why="replicas are not compared while a run goes on. Drop it"
    ),
    "rerun-mode": Absent(why="steps are not run twice. Drop it"),
    "error-injection-rate": Absent(why="steps are not run twice. Drop it"),
    "enable-ft-package": Absent(why="NVIDIA's fault tolerance package is not used; --load goes on"),
    "calc-ft-timeouts": Absent(why="NVIDIA's fault tolerance package is not used; --load goes on"),
    # logging
    "log-interval": _LOGGED,
    "log-params-norm": Absent(why="the norm of the gradient is recorded, that of the weights not"),
    "log-throughput": _TIMERS,
    "log-progress": _LOGGED,
    "log-straggler": _TIMERS,
    "timing-log-level": _TIMERS,
    "timing-log-option": _TIMERS,
    "logging-level": Absent(why="it is --log-level debug, info, warning or error"),
    "tensorboard-log-interval": _TENSORBOARD,
    "tensorboard-queue-size": _TENSORBOARD,
    "log-timers-to-tensorboard": _TENSORBOARD,
    "no-log-loss-scale-to-tensorboard": _TENSORBOARD,
    "no-log-learnig-rate-to-tensorboard": _TENSORBOARD,
    "log-validation-ppl-to-tensorboard": _TENSORBOARD,
    "log-memory-to-tensorboard": _TENSORBOARD,
    "log-world-size-to-tensorboard": _TENSORBOARD,
    "enable-one-logger": _ONE_LOGGER,
    "no-one-logger": _ONE_LOGGER,
    "one-logger-async": _ONE_LOGGER,
    "wandb-entity": Ours(to="wandb-team"),
    "wandb-exp-name": Absent(why="a run's name is --name"),
    "wandb-save-dir": Ours(to="wandb-dir"),
    "profile": _NO_PROFILER,
    "profile-step-start": _NO_PROFILER,
    "profile-step-end": _NO_PROFILER,
    "profile-ranks": _NO_PROFILER,
    "use-pytorch-profiler": _NO_PROFILER,
    "record-memory-history": _NO_PROFILER,
    "memory-snapshot-path": _NO_PROFILER,
}
