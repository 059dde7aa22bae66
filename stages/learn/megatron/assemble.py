"""Puts a rank together from the settings: device, groups, model, gradient buffers, optimizer,
schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, clip_grads, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module

from configs.schema import OPTIMIZER_DEFAULTS, OptimConfig
from pipeline.core.errors import ConfigError
from pipeline.core.find_checkpoint import find_torch_dist
from stages.learn.determinism import seed_everything, use_deterministic_kernels
from stages.learn.megatron import checkpoint, compat, parallel
from stages.learn.megatron.adam import use_fused_adam
from stages.learn.megatron.arguments import convert, model_fields, owned_by
from stages.learn.megatron.bridge import load_hf_weights, make_bridge
from stages.learn.megatron.low_precision import token_multiple
from stages.learn.megatron.model import PolicyModel
from stages.learn.megatron.names import expert_biases
from stages.learn.megatron.spec import head_dims
from stages.learn.megatron.user_hooks import MegatronHooks
from stages.learn.megatron.virtual import resolve_virtual
from stages.learn.schedule import warmup_and_decay
from stages.learn.settings import LearnerSettings
from stages.learn.varlen import can_attend


@dataclass(kw_only=True)
class RankParts:
    """The parts that one rank works with."""

    bridge: Any
    hf_folder: Path
    device: torch.device
    models: list[PolicyModel]
    ddp: list[DistributedDataParallel]
    optimizer: Any
    scheduler: OptimizerParamScheduler
    make_scheduler: Callable[[], OptimizerParamScheduler]
    forward_backward: Callable[..., list[Any]]
    thd: bool
    varlen: bool
    token_multiple: int
    vocab_shard: int
    dp_rank: int
    dp_size: int

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def scaled_lr(self, scale: float) -> contextlib.AbstractContextManager[None]:
        """While this context lasts, the schedule's learning rates are multiplied by `scale`."""
        return self._rates(lambda group: group["lr"] * scale)

    def at_lr(self, lr: float) -> contextlib.AbstractContextManager[None]:
        """While this context lasts, the learning rate is `lr` instead of the schedule's."""
        return self._rates(lambda group: lr * group.get("lr_mult", 1.0))

    @contextlib.contextmanager
    def _rates(self, rate: Callable[[dict[str, Any]], float]) -> Iterator[None]:
        groups = self.optimizer.param_groups
        kept = [g["lr"] for g in groups]
        try:
            for group in groups:
                group["lr"] = rate(group)
            yield
        finally:
            for group, lr in zip(groups, kept, strict=True):
                group["lr"] = lr

    def finish_param_gather(self) -> None:
        """Makes the weights whole now. With --overlap-param-gather they are so only after the next
        forward pass has begun."""
        for ddp in self.ddp:
            if ddp.ddp_config.overlap_param_gather:
                ddp.start_param_sync(force_sync=True)

    @property
    def torch_optimizers(self) -> list[torch.optim.Optimizer]:
        chained = getattr(self.optimizer, "chained_optimizers", [self.optimizer])
        return [o.optimizer for o in chained if not o.is_stub_optimizer]

    def reset_optimizer(self) -> None:
        for optimizer in self.torch_optimizers:
            optimizer.state.clear()
            for group in optimizer.param_groups:
                group.pop("step", None)  # where fused optimizers count
        self.scheduler = self.make_scheduler()

    def complete_optimizer_state(self) -> None:
        """Gives torch's AdamW the zeros that it makes at its first step: a checkpoint can then be
        written and read before that step."""
        for optimizer in self.torch_optimizers:
            if isinstance(optimizer, torch.optim.AdamW):
                for p in (p for group in optimizer.param_groups for p in group["params"]):
                    state = optimizer.state[p]
                    state.setdefault("step", torch.zeros((), dtype=torch.float32, device=p.device))
                    for name in ("exp_avg", "exp_avg_sq"):
                        if name not in state:
                            state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def clip_gradients(self, norm: float) -> None:
        config = self.optimizer.config
        if config.clip_grad > 0:
            decoupled = config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
            clip_grads.clip_grad_by_total_norm_fp32(
                self.optimizer_parameters(), config.clip_grad, norm, decoupled
            )

    def optimizer_parameters(self) -> list[torch.nn.Parameter]:
        return [
            p
            for optimizer in self.torch_optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        ]


def build(
    settings: LearnerSettings, *, rank: int, world_size: int, store: dist.Store | None
) -> RankParts:
    """The parts of this rank. Raises ConfigError and CheckpointError as MegatronRank says."""
    on_cpu = compat.install()
    if settings.model.device == "cuda" and on_cpu:
        raise ConfigError("--device cuda: this process sees no CUDA device")
    device = torch.device("cpu" if on_cpu or settings.model.device == "cpu" else "cuda")
    if device.type == "cpu" and not on_cpu:
        raise ConfigError(
            "--device cpu on a machine with CUDA: hide the devices instead (CUDA_VISIBLE_DEVICES=)"
        )
    values = {name: convert(name, given) for name, given in settings.megatron.items()}
    if not settings.model.hf_checkpoint:
        raise ConfigError("--hf-checkpoint is not given: the folder of the model to train")
    hf_folder = Path(settings.model.hf_checkpoint)
    values = resolve_virtual(
        values, settings.optim.num_layers_per_virtual_pipeline_stage, hf_folder
    )
    dtype = _dtype(settings.model.dtype, device)
    use_deterministic_kernels(bool(values.get("deterministic_mode")))
    seed_everything(settings.seed)
    parallel.initialize(
        values, rank=rank, world_size=world_size, store=store, device=device, seed=settings.seed
    )
    hooks = MegatronHooks(settings)
    hooks.initialised()
    bridge = make_bridge(hf_folder, dtype, model_fields(values))
    with compat.cuda_methods():
        models = bridge.build(hooks.chunk)
    load_first_weights(bridge, models, hf_folder, settings)
    ddp = _wrap(bridge.config, models, owned_by("DistributedDataParallelConfig", values), device)
    optimizer = _make_optimizer(ddp, dtype, owned_by("OptimizerConfig", values))
    _connect(bridge.config, ddp, optimizer)

    def make_scheduler() -> OptimizerParamScheduler:
        return _make_scheduler(optimizer, settings.optim, settings.num_optimizer_steps)

    return RankParts(
        bridge=bridge,
        hf_folder=hf_folder,
        device=device,
        models=models,
        ddp=ddp,
        optimizer=optimizer,
        scheduler=make_scheduler(),
        make_scheduler=make_scheduler,
        forward_backward=get_forward_backward_func(),
        thd=bridge.use_te,
        varlen=not bridge.use_te and can_attend(device, dtype, head_dims(bridge.config)),
        token_multiple=token_multiple(bridge.config),
        vocab_shard=bridge.padded_vocab_size // bridge.config.tensor_model_parallel_size,
        dp_rank=mpu.get_data_parallel_rank(),
        dp_size=mpu.get_data_parallel_world_size(),
    )


def load_first_weights(
    bridge: Any, models: list[PolicyModel], hf_folder: Path, settings: LearnerSettings
) -> None:
    """Loads what training begins with: --initial-megatron-checkpoint, or the Hugging Face folder.
    Raises CheckpointError."""
    initial = settings.model.initial_megatron_checkpoint
    if initial is None:
        load_hf_weights(bridge, models, hf_folder)
        return
    checkpoint.load_models(models, find_torch_dist(Path(initial), "--initial-megatron-checkpoint"))


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return getattr(torch, name)


def _wrap(
    config: Any, models: list[PolicyModel], given: Mapping[str, Any], device: torch.device
) -> list[DistributedDataParallel]:
    """Gradient buffers and reduction.

    Sums are in float32 whatever the weights are, unless a flag says otherwise.
    """
    ddp_config = DistributedDataParallelConfig(**{"grad_reduce_in_fp32": True, **given})
    modules = [m.to(device) for m in models]
    if (
        config.num_moe_experts
        and config.expert_tensor_parallel_size != config.tensor_model_parallel_size
    ):
        _mark_experts(modules)
    if config.bf16 or config.fp16:
        biases = [b for m in models for b in expert_biases(m)]
        modules = [Float16Module(config, m) for m in modules]
        for bias, kept in zip((b for m in models for b in expert_biases(m)), biases, strict=True):
            # Megatron computes with it in float32 again, but only after it was rounded
            bias.data = kept
    return [
        DistributedDataParallel(config, ddp_config, m, disable_bucketing=i > 0)
        for i, m in enumerate(modules)
    ]


def _mark_experts(models: list[PolicyModel]) -> None:
    """Experts that are cut otherwise than the other layers are reduced over ranks of their own.
    Megatron-core 0.16.1 marks them so only with --expert-model-parallel-size > 1, and else adds up
    gradients of different shards."""
    for name, p in (x for model in models for x in model.named_parameters()):
        if ".mlp.experts." in name:
            p.allreduce = False


def _make_optimizer(
    ddp: list[DistributedDataParallel], dtype: torch.dtype, given: Mapping[str, Any]
) -> Any:
    base = {
        "optimizer": "adam",
        "bf16": dtype is torch.bfloat16,
        "params_dtype": dtype,
        **OPTIMIZER_DEFAULTS,
    }
    on_cpu = next(ddp[0].parameters()).device.type == "cpu"
    if on_cpu:  # an optimizer that is there already has nowhere to be offloaded to
        given = {name: value for name, value in given.items() if name != "optimizer_cpu_offload"}
    with compat.cuda_methods():
        optimizer = get_megatron_optimizer(OptimizerConfig(**{**base, **given}), ddp)
    for chained in getattr(optimizer, "chained_optimizers", [optimizer]):
        use_fused_adam(chained.optimizer)
    return optimizer


def _connect(config: Any, ddp: list[DistributedDataParallel], optimizer: Any) -> None:
    """Sets the hooks through which Megatron's schedules reach gradient reduction and loss
    scaling."""
    config.finalize_model_grads_func = finalize_model_grads
    config.no_sync_func = [d.no_sync for d in ddp] if len(ddp) > 1 else ddp[0].no_sync
    config.grad_scale_func = optimizer.scale_loss if config.fp16 else None
    if ddp[0].ddp_config.overlap_grad_reduce:
        config.grad_sync_func = (
            [d.start_grad_sync for d in ddp] if len(ddp) > 1 else ddp[0].start_grad_sync
        )
    if ddp[0].ddp_config.overlap_param_gather:
        config.param_sync_func = (
            [d.start_param_sync for d in ddp] if len(ddp) > 1 else ddp[0].start_param_sync
        )


def _make_scheduler(optimizer: Any, optim: OptimConfig, num_steps: int) -> OptimizerParamScheduler:
    """Counted in optimizer steps.

    A resumed run keeps its place and takes shape and rates from today's flags.
    """
    warmup, decay = warmup_and_decay(optim, num_steps)
    config = optimizer.config
    constant = optim.weight_decay_incr_style == "constant"
    return OptimizerParamScheduler(
        optimizer,
        init_lr=optim.lr_warmup_init,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=decay,
        lr_decay_style=optim.lr_decay_style,
        start_wd=config.weight_decay if constant else optim.start_weight_decay,
        end_wd=config.weight_decay if constant else optim.end_weight_decay,
        wd_incr_steps=decay,
        wd_incr_style=optim.weight_decay_incr_style,
        wsd_decay_steps=optim.lr_wsd_decay_iters,
        lr_wsd_decay_style=optim.lr_wsd_decay_style,
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
