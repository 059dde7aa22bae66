"""One learner rank: Megatron's model, gradient reduction, optimizer and schedule, stepped by rollouts.

Every rank of a group calls the same methods in the same order; each works on its own share of the batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import LearnerError
from pipeline.types import MicroBatch, OptimizerStep, TrainBatch
from stages.learn.megatron import checkpoint, objective, parallel
from stages.learn.megatron.build import Built, build
from stages.learn.megatron.critic import Critic
from stages.learn.megatron.packing import PackedMicroBatch, pack
from stages.learn.settings import LearnerSettings

Prepared = tuple[PackedMicroBatch, Tensor | None]  # a micro-batch and its old log-probs (None: equal to the new ones)
Objective = Callable[..., tuple[Tensor, Tensor, Tensor]]


class MegatronRank:
    """One process's part of the learner. Initialises the process groups; only one may live in a process at a time.

    Raises ConfigError for flags that contradict each other, CheckpointError for a model folder that cannot be used.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        *,
        rank: int = 0,
        world_size: int = 1,
        store: dist.Store | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.settings, self.rank, self.world_size, self._clock = settings, rank, world_size, clock
        try:
            self._built: Built = build(settings, rank=rank, world_size=world_size, store=store)
            self._critic = Critic(settings, self._built) if settings.algorithm.advantage_estimator == "ppo" else None
        except BaseException:
            parallel.shutdown()
            raise
        self.device = self._built.device

    # ---- training

    def step(self, batch: TrainBatch) -> dict[str, float]:
        """Train on one rollout; metrics as StepResult says, the same on every rank: means over the optimizer steps.

        Raises LearnerError on every rank when a loss or gradient is not finite: that optimizer step is not applied
        (those before it, of the same rollout, are) and weights, optimizer and schedule are as they were before it.
        """
        started = self._clock()
        packed = [self._pack(s.per_rank) for s in batch.steps]
        packed, critic_metrics, policy_step = self._criticise(batch, packed)
        prepared = [[(mb, None) for mb in packed[0]], *[self._with_old_log_probs(mbs) for mbs in packed[1:]]]
        results = []
        for number, (step, micro_batches) in enumerate(zip(batch.steps, prepared, strict=True), 1):
            where = f"rollout {batch.rollout_id}, optimizer step {number} of {len(batch.steps)}"
            results.append(policy_step(step, micro_batches, where))
        metrics = {k: sum(r[k] for r in results) / len(results) for k in results[0]}
        metrics["ratio_max"] = max(r["ratio_max"] for r in results)
        for total in ("num_loss_tokens",):
            metrics[total] = sum(r[total] for r in results)
        every = (s for step in batch.steps for rank in step.per_rank for mb in rank for s in mb)
        metrics["num_tokens"] = float(sum(s.num_tokens for s in every))
        metrics["seconds"] = self._clock() - started
        return {**metrics, **critic_metrics}

    def _criticise(
        self, batch: TrainBatch, packed: list[list[PackedMicroBatch]]
    ) -> tuple[list[list[PackedMicroBatch]], dict[str, float], Any]:
        """With ppo: advantages from the critic, its own steps, and whether the policy steps or (--num-critic-only-steps) only looks on."""
        if self._critic is None:
            return packed, {}, self._policy_step
        packed, targets = self._critic.estimate(packed)
        metrics = self._critic.train(batch, packed, targets)
        return packed, metrics, self._policy_look if self._critic.is_alone(batch.rollout_id) else self._policy_step

    def sft_step(self, step: OptimizerStep, lr: float) -> dict[str, float]:
        """One supervised step (mean cross entropy over the trained tokens) at learning rate `lr`, beside the schedule.

        Metrics: loss, grad_norm, lr, token_probability (mean), num_loss_tokens. Call `reset_optimizer` before the first rollout.
        """
        denominator = float(max(1, step.num_loss_tokens))
        groups = self._built.optimizer.param_groups
        rates = [g["lr"] for g in groups]
        for group in groups:
            group["lr"] = lr * group.get("lr_mult", 1.0)

        def goal(now: Any, mb: PackedMicroBatch, _old: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            return objective.sft_objective(now, mb, denominator)

        try:
            micro_batches: list[Prepared] = [(mb, None) for mb in self._pack(step.per_rank)]
            sums, _, norm = self._optimizer_step(micro_batches, goal, len(objective.SFT_SUMS), "supervised step")
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
        loss, count, probability = sums.tolist()
        return {"loss": loss, "grad_norm": norm, "lr": lr, "token_probability": probability / max(count, 1), "num_loss_tokens": count}

    def reset_optimizer(self) -> None:
        """Forget Adam's moments and start the schedule anew: what a warm-up leaves must not shape the first rollouts."""
        self._built.reset_optimizer()

    def _policy_step(self, step: OptimizerStep, micro_batches: Sequence[Prepared], where: str) -> dict[str, float]:
        lr = self._built.lr
        sums, maxima, norm = self._optimizer_step(micro_batches, self._policy_goal(step), len(objective.SUMS), where)
        self._built.scheduler.step(increment=1)
        return {**objective.policy_metrics(sums, maxima), "grad_norm": norm, "lr": lr}

    def _policy_goal(self, step: OptimizerStep) -> Objective:
        config = self.settings.algorithm
        denominator = float(step.num_loss_tokens if config.calculate_per_token_loss else step.num_samples) or 1.0

        def goal(now: Any, mb: PackedMicroBatch, old: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            return objective.policy_objective(now, old, mb, config, denominator)

        return goal

    def _policy_look(self, step: OptimizerStep, micro_batches: Sequence[Prepared], where: str) -> dict[str, float]:
        """The metrics of a policy step that is not taken."""
        goal = self._policy_goal(step)

        def keep(prepared: Prepared, logits: Tensor, non_loss_data: bool = True) -> tuple[Tensor, Tensor]:
            return goal(self._log_probs(logits, prepared[0], with_entropy=True), *prepared)[1:]

        with torch.no_grad():
            found = self._schedule(micro_batches, keep, forward_only=True)
        like = (torch.zeros(len(objective.SUMS), device=self.device), torch.zeros(1, device=self.device))
        sums = torch.stack([s for s, _ in found]).sum(0) if found else None
        sums, maxima = parallel.reduce_metrics(sums, torch.stack([m for _, m in found]).amax(0) if found else None, like)
        return {**objective.policy_metrics(sums, maxima), "grad_norm": 0.0, "lr": 0.0}

    def _optimizer_step(
        self, micro_batches: Sequence[Prepared], goal: Objective, num_sums: int, where: str
    ) -> tuple[Tensor, Tensor, float]:
        """Forward, backward, reduce, check, clip, update. Returns (sums, maxima, gradient norm before clipping)."""
        built = self._built
        for model in built.ddp:
            model.zero_grad_buffer()
        built.optimizer.zero_grad()
        found = self._run(micro_batches, goal)
        sums = sum((s for s, _ in found), start=torch.zeros(num_sums, device=self.device)) if found else None
        maxima = torch.stack([m for _, m in found]).amax(0) if found else None
        like = (torch.zeros(num_sums, device=self.device), torch.zeros(1, device=self.device))
        sums, maxima = parallel.reduce_metrics(sums, maxima, like)
        overflow = built.optimizer.prepare_grads()
        norm = float(built.optimizer.get_grad_norm())
        loss = float(sums[0])
        if parallel.any_rank(bool(overflow) or not (math.isfinite(norm) and math.isfinite(loss)), self.device):
            built.optimizer.zero_grad()
            raise LearnerError(
                f"{where}: loss {loss}, gradient norm {norm}: not finite. The step was refused, the weights are as before it. "
                "Look for non-finite rewards, advantages or log-probs in the saved batch; a lower --lr or --clip-grad may help"
            )
        built.clip_gradients(norm)
        built.optimizer.step_with_ready_grads()
        return sums, maxima, norm

    def _run(self, micro_batches: Sequence[Prepared], goal: Objective) -> list[tuple[Tensor, Tensor]]:
        """Forward and backward over this rank's micro-batches; (sums, maxima) of each on the last pipeline stage, else nothing."""
        # Megatron divides the loss by the micro-batches and the gradients by the data-parallel size; ours are shares of a sum.
        scale = len(micro_batches) * parallel.data_parallel_size()

        def loss_of(prepared: Prepared, logits: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            mb, old = prepared
            now = self._log_probs(logits, mb, with_entropy=True)
            loss, sums, maxima = goal(now, mb, old)
            return loss * scale, (sums, maxima)

        return self._schedule(micro_batches, loss_of, forward_only=False)

    def _with_old_log_probs(self, micro_batches: Sequence[PackedMicroBatch]) -> list[Prepared]:
        """Old log-probs under the weights at consumption. Only later optimizer steps need the pass: at the first one they are equal."""
        if self.settings.algorithm.use_rollout_logprobs:
            return [(mb, None) for mb in micro_batches]

        def keep(prepared: Prepared, logits: Tensor, non_loss_data: bool = True) -> Tensor:
            return self._log_probs(logits, prepared[0], with_entropy=False).log_probs

        with torch.no_grad():
            found = self._schedule([(mb, None) for mb in micro_batches], keep, forward_only=True)
        # Stages before the last have no logits, and never look at old log-probs.
        return list(zip(micro_batches, found or [None] * len(micro_batches), strict=True))

    def _log_probs(self, logits: Tensor, mb: PackedMicroBatch, *, with_entropy: bool) -> Any:
        shard = self._built.vocab_shard
        temperature = self.settings.temperature
        return objective.log_probs_of(logits, mb, temperature=temperature, vocab_shard=shard, with_entropy=with_entropy)

    def _schedule(self, micro_batches: Sequence[Prepared], last_stage: Callable[..., Any], *, forward_only: bool) -> list[Any]:
        """Megatron's schedule over the micro-batches; `last_stage(prepared, logits)` gives what is collected of each."""

        def forward(source: Iterator[Prepared], model: Any) -> tuple[Tensor, Callable[..., Any]]:
            prepared = next(source)
            mb = prepared[0]
            logits = model(mb.tokens, mb.positions, None, packed_seq_params=mb.packing, loss_mask=mb.rows)
            return logits, lambda out, **kwargs: last_stage(prepared, out, **kwargs)

        models = self._built.ddp
        longest = max(mb.num_inputs for mb, _ in micro_batches)
        return self._built.forward_backward(
            forward_step_func=forward,
            data_iterator=[iter(micro_batches) for _ in models],
            model=list(models),
            num_microbatches=len(micro_batches),
            seq_length=longest,
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )

    def _pack(self, per_rank: tuple[tuple[MicroBatch, ...], ...]) -> list[PackedMicroBatch]:
        built = self._built
        if len(per_rank) != built.dp_size:
            raise LearnerError(f"the batch is cut for {len(per_rank)} data-parallel ranks, the learner has {built.dp_size}")
        if not per_rank[built.dp_rank]:
            raise LearnerError("an optimizer step without micro-batches: every rank needs at least one, and equally many")
        return [pack(mb, self.device, thd=built.thd, multiple_of=built.token_multiple) for mb in per_rank[built.dp_rank]]

    # ---- weights and checkpoints

    @property
    def dp_rank(self) -> int:
        return self._built.dp_rank

    @property
    def dp_size(self) -> int:
        return self._built.dp_size

    def hf_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, whole tensor) of all weights; every rank iterates to the end, every rank gets them.

        Tensors may share memory with the model: copy what must outlive the next step.
        """
        return self._built.bridge.hf_weights(self._built.models)

    def export_hf(self, path: Path) -> None:
        """Write `path` as a Hugging Face folder: safetensors, config.json, tokenizer files. Every rank calls it."""
        checkpoint.export_hf(self.hf_weights(), self._built.hf_folder, path, write=self.rank == 0)
        dist.barrier()

    def save(self, path: Path) -> None:
        """Write `path`/torch_dist (weights, optimizer, schedule) and `path`/hf. Every rank calls it."""
        checkpoint.save(self._built, path / "torch_dist")
        if self._critic is not None:
            self._critic.save(path)
        self.export_hf(path / "hf")

    def load(self, path: Path) -> None:
        """Read what `save` wrote under `path`. Raises CheckpointError on every rank when it is not there or does not fit."""
        checkpoint.load(self._built, path / "torch_dist")
        if self._critic is not None:
            self._critic.load(path)

    def close(self) -> None:
        """Leave the process groups. The object is of no use afterwards."""
        parallel.shutdown()
