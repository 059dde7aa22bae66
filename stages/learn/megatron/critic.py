"""PPO's critic: the policy's architecture with one output, its own optimizer and schedule, on the
policy's ranks.

A rollout: values of every trained token under the critic at consumption -> GAE -> the policy's
advantages and the critic's targets -> the critic's optimizer steps, cut as the policy's are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state as mpu
from torch import Tensor

from configs.schema import AlgorithmConfig
from pipeline.core.batch_share import BatchShare, StepShare
from pipeline.core.errors import CheckpointError, LearnerError
from stages.learn import rendezvous
from stages.learn.critic import compute_gae, compute_value_loss, whiten_over_ranks
from stages.learn.losses import token_weights
from stages.learn.megatron import assemble as building
from stages.learn.megatron import checkpoint, compat, parallel
from stages.learn.megatron.arguments import convert, model_fields, owned_by
from stages.learn.megatron.balance import Balance
from stages.learn.megatron.bridge import load_hf_weights, make_bridge
from stages.learn.megatron.context import whole
from stages.learn.megatron.packing import PackedMicroBatch
from stages.learn.megatron.passes import MegatronPasses
from stages.learn.megatron.user_hooks import MegatronHooks
from stages.learn.settings import LearnerSettings

FOLDER = "critic"  # in a snapshot, beside torch_dist
_SUMS = ("loss", "count", "clipped", "value", "return", "return_squared", "error", "error_squared")


class Targets(NamedTuple):
    """What the critic learns from in one micro-batch; None on pipeline stages that have no
    values."""

    old_values: Tensor  # [N]
    returns: Tensor  # [N]


class CriticInputs(NamedTuple):
    """What the critic's passes go over."""

    batch: PackedMicroBatch
    targets: Targets | None = None


class ValueHead(torch.nn.Module):
    """Stands in the place of the output layer: hidden states [N, 1, H] -> values [N, 1, 1], in
    float32. It starts at 0: returns are then advantages.

    It is the same on every tensor-parallel rank. Under sequence parallelism the gather before it
    adds up what comes back from all of them, so each gives its share."""

    def __init__(self, hidden_size: int, share: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, hidden_size))
        self._share = share

    def forward(
        self, hidden: Tensor, weight: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        if self._share != 1.0:
            hidden = hidden * self._share + hidden.detach() * (1.0 - self._share)
        return torch.nn.functional.linear(hidden.float(), self.weight.float()), None


class Critic:
    """The critic of a rank. MegatronRank makes and calls it, on every rank alike."""

    def __init__(self, settings: LearnerSettings, policy: building.RankParts) -> None:
        self._algorithm, self._config = settings.algorithm, settings.critic
        self.built = _build(settings, policy)
        self._passes = MegatronPasses(self.built, settings.temperature)
        self._balance = Balance(self.built.models, self.built.bridge.config)
        load = settings.critic.critic_load
        if load is not None and not (Path(load) / "config.json").is_file():
            path = Path(load)
            checkpoint.load(self.built, path / FOLDER if (path / FOLDER).is_dir() else path)

    def is_alone(self, rollout_id: int) -> bool:
        """Does only the critic learn from this rollout?"""
        return rollout_id < self._config.num_critic_only_steps

    def estimate(
        self, steps: Sequence[Sequence[PackedMicroBatch]]
    ) -> tuple[list[list[PackedMicroBatch]], list[list[Targets | None]]]:
        """The micro-batches with token rewards replaced by advantages, and what the critic is to
        learn from them."""
        flat = [mb for step in steps for mb in step]
        values = [v for step in steps for v in self._values(step)]
        if not values:  # not the last pipeline stage: neither advantages nor targets are looked at
            return [list(step) for step in steps], [[None] * len(step) for step in steps]
        a = self._algorithm
        found = [
            compute_gae(mb.advantages, v, mb.token_counts, gamma=a.gamma, lambd=a.lambd)
            for mb, v in zip(flat, values, strict=True)
        ]
        advantages = [g.advantages for g in found]
        if a.normalize_advantages:
            advantages = whiten_over_ranks(advantages, mpu.get_data_parallel_group())
        filled = iter(
            [dataclasses.replace(mb, advantages=x) for mb, x in zip(flat, advantages, strict=True)]
        )
        targets = iter([Targets(v, g.returns) for v, g in zip(values, found, strict=True)])
        return [[next(filled) for _ in step] for step in steps], [
            [next(targets) for _ in step] for step in steps
        ]

    def train(
        self,
        batch: BatchShare,
        steps: Sequence[Sequence[PackedMicroBatch]],
        targets: Sequence[Sequence[Targets | None]],
    ) -> dict[str, float]:
        """Takes one value step for every policy step; metrics are means over them.

        Raises LearnerError as MegatronRank.step does."""
        results = []
        for number, (step, micro_batches, goals) in enumerate(
            zip(batch.steps, steps, targets, strict=True), 1
        ):
            where = f"rollout {batch.rollout_id}, critic step {number} of {len(batch.steps)}"
            results.append(
                self._step(
                    step,
                    [CriticInputs(*pair) for pair in zip(micro_batches, goals, strict=True)],
                    where,
                )
            )
        return {k: sum(r[k] for r in results) / len(results) for k in results[0]}

    def _values(self, micro_batches: Sequence[PackedMicroBatch]) -> list[Tensor]:
        def keep(judged: CriticInputs, out: Tensor, non_loss_data: bool = True) -> Tensor:
            return _values_of(out, judged.batch)

        with torch.no_grad():
            return self._passes.run(
                [CriticInputs(mb) for mb in micro_batches], keep, forward_only=True
            )

    def _step(
        self, step: StepShare, micro_batches: Sequence[CriticInputs], where: str
    ) -> dict[str, float]:
        built, per_token = self.built, self._algorithm.calculate_per_token_loss
        denominator = float(step.num_loss_tokens if per_token else step.num_samples) or 1.0
        scale = len(micro_batches) * built.dp_size  # Megatron divides by both

        def loss_of(judged: CriticInputs, out: Tensor) -> tuple[Tensor, Tensor]:
            assert judged.targets is not None
            values, clip = _values_of(out, judged.batch), self._config.value_clip
            loss, sums = _objective(
                values, judged.batch, judged.targets, self._algorithm, clip, denominator
            )
            return loss * scale, sums

        for model in built.ddp:
            model.zero_grad_buffer()
        built.optimizer.zero_grad()
        with self._balance.restored_on_error():
            return self._apply(micro_batches, loss_of, where)

    def _apply(
        self, micro_batches: Sequence[CriticInputs], loss_of: Callable[..., Any], where: str
    ) -> dict[str, float]:
        """Goes forward and backward, reduces, checks, clips and updates."""
        built = self.built
        found = self._passes.run(micro_batches, loss_of, forward_only=False)
        zeros = torch.zeros(len(_SUMS), device=built.device)
        sums, _ = parallel.reduce_metrics(
            sum(found, start=zeros.clone()) if found else None, None, (zeros, zeros[:1].clone())
        )
        overflow = built.optimizer.prepare_grads()
        norm = float(built.optimizer.get_grad_norm())
        if rendezvous.any_rank(
            bool(overflow) or not (math.isfinite(norm) and math.isfinite(float(sums[0]))),
            built.device,
        ):
            built.optimizer.zero_grad()
            raise LearnerError(
                f"{where}: value loss {float(sums[0])}, gradient norm {norm}: not finite. The step"
                " was refused, the critic is as before it. Look for non-finite rewards in the"
                " saved batch; a lower --critic-lr may help"
            )
        built.clip_gradients(norm)
        built.optimizer.step_with_ready_grads()
        lr = built.lr
        built.scheduler.step(increment=1)
        return {**_metrics(sums), "critic_grad_norm": norm, "critic_lr": lr}

    def save(
        self, path: Path, *, optimizer: bool = True, write: checkpoint.Write | None = None
    ) -> Any:
        """Writes `path`/critic: weights, optimizer, schedule. Every rank calls it."""
        self.built.finish_param_gather()
        return checkpoint.save(self.built, path / FOLDER, optimizer=optimizer, write=write)

    def load(self, path: Path, *, optimizer: bool = True) -> None:
        checkpoint.load(self.built, path / FOLDER, optimizer=optimizer)


def _values_of(out: Tensor, mb: PackedMicroBatch) -> Tensor:
    """[1, n, 1] of this rank's trained tokens -> [N] of all of the micro-batch's."""
    return whole(out[0, :, 0].float(), mb.own, len(mb.targets))


def _build(settings: LearnerSettings, policy: building.RankParts) -> building.RankParts:
    """Builds model, gradient buffers, optimizer and schedule; the backbone has the weights of
    --critic-load's folder, or the policy's."""
    values = {name: convert(name, given) for name, given in settings.megatron.items()}
    dtype = building._dtype(settings.model.dtype, policy.device)
    load = settings.critic.critic_load
    if load is not None and not Path(load).is_dir():
        raise CheckpointError(f"--critic-load {load}: no such folder")
    folder = (
        Path(load)
        if load is not None and (Path(load) / "config.json").is_file()
        else policy.hf_folder
    )
    bridge = make_bridge(folder, dtype, model_fields(values))
    with compat.cuda_methods():
        models = bridge.build(MegatronHooks(settings).chunk)
    if load is None:
        building.load_first_weights(bridge, models, folder, settings)
    else:
        load_hf_weights(bridge, models, folder)
    share = (
        1.0 / bridge.config.tensor_model_parallel_size if bridge.config.sequence_parallel else 1.0
    )
    for model in models:
        model.share_embeddings_and_output_weights = False
        if model.post_process:
            model.output_layer = ValueHead(bridge.config.hidden_size, share).to(dtype)
    ddp = building._wrap(
        bridge.config, models, owned_by("DistributedDataParallelConfig", values), policy.device
    )
    rate = {} if settings.critic.critic_lr is None else {"lr": settings.critic.critic_lr}
    optimizer = building._make_optimizer(
        ddp, dtype, {**owned_by("OptimizerConfig", values), **rate}
    )
    building._connect(bridge.config, ddp, optimizer)
    warmup = settings.critic.critic_lr_warmup_iters
    optim = dataclasses.replace(
        settings.optim, lr_warmup_iters=warmup, lr_warmup_fraction=None, lr_warmup_init=0.0
    )

    def make_scheduler() -> Any:
        return building._make_scheduler(optimizer, optim, settings.num_optimizer_steps)

    changed = {
        "bridge": bridge,
        "hf_folder": folder,
        "models": models,
        "ddp": ddp,
        "optimizer": optimizer,
    }
    return dataclasses.replace(
        policy, **changed, scheduler=make_scheduler(), make_scheduler=make_scheduler
    )


def _objective(
    values: Tensor,
    mb: PackedMicroBatch,
    goal: Targets,
    config: AlgorithmConfig,
    value_clip: float,
    denominator: float,
) -> tuple[Tensor, Tensor]:
    """(loss share, _SUMS [k]) of one micro-batch, weighted as the policy loss is."""
    per_token = config.calculate_per_token_loss
    weights = token_weights(
        mb.token_counts,
        per_token=per_token,
        sample_weights=mb.weights_of_samples(per_token=per_token),
    )
    found = compute_value_loss(values, goal.old_values, goal.returns, value_clip=value_clip)
    loss = (found.loss * weights).sum() / denominator
    with torch.no_grad():
        error = goal.returns - values
        parts = (
            torch.ones_like(values),
            found.clipped.float(),
            values,
            goal.returns,
            goal.returns.square(),
            error,
            error.square(),
        )
        return loss, torch.cat([loss.detach()[None], torch.stack(parts).sum(-1)])


def _metrics(sums: Tensor) -> dict[str, float]:
    """The critic's metrics: means over trained tokens. explained_variance: 1 - Var(R - V) / Var(R),
    0 where all returns are equal."""
    total = dict(zip(_SUMS, sums.double().tolist(), strict=True))
    count = max(total["count"], 1.0)
    mean = {k: v / count for k, v in total.items()}
    spread = mean["return_squared"] - mean["return"] ** 2
    left = mean["error_squared"] - mean["error"] ** 2
    return {
        "value_loss": total["loss"],
        "value_clip_fraction": mean["clipped"],
        "values_mean": mean["value"],
        "returns_mean": mean["return"],
        "explained_variance": 1.0 - left / spread if spread > 1e-12 else 0.0,
    }
