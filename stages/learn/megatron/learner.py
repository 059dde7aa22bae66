"""One learner rank: Megatron's model, gradient reduction, optimizer and schedule, stepped by rollouts.

Every rank of a group calls the same methods in the same order; each works on its own share of the batch.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import LearnerError
from pipeline.flops import read_cost
from pipeline.types import OptimizerStep, TrainBatch
from stages.learn.goal import Goal, Worst
from stages.learn.losses import TokenLogProbs
from stages.learn.megatron import checkpoint, parallel
from stages.learn.megatron.ahead import Ahead
from stages.learn.megatron.build import Built, build
from stages.learn.megatron.critic import Critic
from stages.learn.megatron.offload import Offload
from stages.learn.megatron.packing import PackedMicroBatch
from stages.learn.megatron.passes import Passes, Prepared
from stages.learn.megatron.reference import Reference
from stages.learn.megatron.wide import WideLogProbs
from stages.learn.meter import StepMeter
from stages.learn.objective import MAXIMA, NUM_POLICY_SUMS, SFT_SUMS, Outcome, penalised_rewards, sft_objective
from stages.learn.settings import LearnerSettings


class Found(NamedTuple):
    """What an optimizer step measured, over all ranks."""

    sums: Tensor
    maxima: Tensor
    extra: dict[str, float]  # of user functions
    grad_norm: float  # before clipping
    lr: float


LARGEST = ("ratio_max", "train_rollout_logprob_abs_diff_max")  # of metrics, over optimizer steps
Objective = Callable[[Tensor, TokenLogProbs, Prepared], Outcome]


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
        self.settings, self.rank, self.world_size = settings, rank, world_size
        try:
            self._built: Built = build(settings, rank=rank, world_size=world_size, store=store)
            self._critic = Critic(settings, self._built) if settings.algorithm.advantage_estimator == "ppo" else None
        except BaseException:
            parallel.shutdown()
            raise
        self.device, self._passes = self._built.device, self._make_passes()
        try:
            self._goal = Goal(settings)
            self._reference = self._make_reference()
            wide = settings.algorithm.log_probs_max_tokens_per_gpu
            joined = WideLogProbs(self._passes, wide, self.device) if wide else None
            self._ahead = Ahead(self._passes, self._goal, self._reference, joined)
            cost = read_cost(self._built.hf_folder, shares_prompts=not self._built.thd)
            self._meter = StepMeter(self.device, cost, world_size, clock)
            self._offload = Offload([self._built, *([self._critic.built] if self._critic is not None else [])])
        except BaseException:
            parallel.shutdown()
            raise

    def _make_passes(self) -> Passes:
        a = self.settings.algorithm
        own_logits = a.custom_loss_function_path is None
        return Passes(self._built, self.settings.temperature, chunk_size=a.log_probs_chunk_size, own_logits=own_logits)

    def _make_reference(self) -> Reference | None:
        if not self._goal.needs_reference:
            return None
        reference = Reference(self._built)
        if self.settings.algorithm.ref_load:
            reference.load_hf(Path(self.settings.algorithm.ref_load))
        return reference

    # ---- training

    def step(self, batch: TrainBatch) -> dict[str, float]:
        """Train on one rollout; metrics as StepResult says, the same on every rank: means over the optimizer steps.

        Raises LearnerError on every rank when a loss or gradient is not finite: that optimizer step is not applied
        (those before it, of the same rollout, are) and weights, optimizer and schedule are as they were before it.
        """
        self._offload.back()
        self._meter.restart()
        looked, trained = self._passes.tokens_forward_only, self._passes.tokens_trained
        prepared = self._ahead.prepare(
            [self._passes.pack(s.per_rank) for s in batch.steps], [s.per_rank[self.dp_rank] for s in batch.steps]
        )
        prepared, critic_metrics = self._criticise(batch, prepared)
        alone = self._critic is not None and self._critic.is_alone(batch.rollout_id)
        results = []
        for number, (step, micro_batches) in enumerate(zip(batch.steps, prepared, strict=True), 1):
            where = f"rollout {batch.rollout_id}, optimizer step {number} of {len(batch.steps)}"
            results.append(self._policy_step(step, micro_batches, where, first=number == 1, taken=not alone))
        interval = self.settings.algorithm.ref_update_interval
        if self._reference and interval and (batch.rollout_id + 1) % interval == 0:
            self._reference.copy_policy()
        looked, trained = self._passes.tokens_forward_only - looked, self._passes.tokens_trained - trained
        spent = self._meter.metrics(batch, extra_passes=looked / max(trained, 1))
        spent["peak_memory_bytes"] = parallel.largest(self._meter.peak_bytes, self.device)
        return {**_over_steps(results), **spent, **critic_metrics}

    def _criticise(self, batch: TrainBatch, prepared: list[list[Prepared]]) -> tuple[list[list[Prepared]], dict[str, float]]:
        """With ppo: the critic makes advantages of the token rewards, and takes its own steps."""
        if self._critic is None:
            return prepared, {}
        rewarded = [[self._with_rewards(p) for p in step] for step in prepared]
        packed, targets = self._critic.estimate(rewarded)
        metrics = self._critic.train(batch, packed, targets)
        filled = [[p._replace(batch=mb) for p, mb in zip(*pair, strict=True)] for pair in zip(prepared, packed, strict=True)]
        return filled, metrics

    def _with_rewards(self, prepared: Prepared) -> PackedMicroBatch:
        """Token rewards, less the KL to the reference with --kl-coef. Only the last pipeline stage looks at them, and has both."""
        mb, old, ref = prepared
        if old is None or ref is None:
            return mb
        return dataclasses.replace(mb, advantages=penalised_rewards(mb, old, ref, self.settings.algorithm))

    def sft_step(self, step: OptimizerStep, lr: float) -> dict[str, float]:
        """One supervised step (mean cross entropy over the trained tokens) at learning rate `lr`, beside the schedule.

        Metrics: loss, grad_norm, lr, token_probability (mean), num_loss_tokens. Call `reset_optimizer` before the first rollout.
        """
        self._offload.back()
        denominator = float(max(1, step.num_loss_tokens))
        groups = self._built.optimizer.param_groups
        rates = [g["lr"] for g in groups]
        for group in groups:
            group["lr"] = lr * group.get("lr_mult", 1.0)

        def goal(_logits: Tensor, now: TokenLogProbs, _prepared: Prepared) -> Outcome:
            return sft_objective(now, denominator)

        try:
            found = self._optimizer_step([Prepared(mb) for mb in self._passes.pack(step.per_rank)], goal, len(SFT_SUMS), "supervised step")
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
        loss, count, probability = found.sums.tolist()
        return {
            "loss": loss,
            "grad_norm": found.grad_norm,
            "lr": lr,
            "token_probability": probability / max(count, 1),
            "num_loss_tokens": count,
        }

    def reset_optimizer(self) -> None:
        """Forget Adam's moments and start the schedule anew: what a warm-up leaves must not shape the first rollouts.

        The reference, unless it has a folder of its own, is the policy as it is now.
        """
        self._built.reset_optimizer()
        if self._reference and not self.settings.algorithm.ref_load:
            self._reference.copy_policy()

    def _policy_step(self, step: OptimizerStep, micro_batches: list[Prepared], where: str, *, first: bool, taken: bool) -> dict[str, float]:
        """`taken` False (--num-critic-only-steps): its metrics only, from forward passes."""
        goal, statistics = self._goal, None
        denominator = goal.denominator(step)
        if goal.correction.needs_statistics:
            micro_batches, statistics = self._ahead.statistics(micro_batches, first=first)

        def loss_of(logits: Tensor, now: TokenLogProbs, prepared: Prepared) -> Outcome:
            return goal.outcome(logits, now, prepared, denominator, statistics)

        goal.worst = Worst()
        if taken:
            found = self._optimizer_step(micro_batches, loss_of, NUM_POLICY_SUMS, where, goal)
            self._built.scheduler.step(increment=1)
        else:
            found = self._look(micro_batches, loss_of, where)
        extra = {k: v / denominator for k, v in found.extra.items()}
        return {**extra, **goal.metrics(found.sums, found.maxima), "grad_norm": found.grad_norm, "lr": found.lr}

    def _look(self, micro_batches: Sequence[Prepared], objective: Objective, where: str) -> Found:
        """What a policy step that is not taken measures."""
        with torch.no_grad():
            outcomes = self._run(micro_batches, objective, forward_only=True)
        sums, maxima = self._reduced(outcomes, NUM_POLICY_SUMS)
        if self._goal.off_policy(maxima):
            raise self._not_on_policy(self._goal, where)
        return Found(sums, maxima, self._extra_metrics(outcomes) if self._goal.has_extra_metrics else {}, 0.0, 0.0)

    def _optimizer_step(
        self, micro_batches: Sequence[Prepared], objective: Objective, num_sums: int, where: str, goal: Goal | None = None
    ) -> Found:
        """Forward, backward, reduce, check, clip, update. `goal`: what checks and scales a policy step."""
        built = self._built
        for model in built.ddp:
            model.zero_grad_buffer()
        built.optimizer.zero_grad()
        outcomes = self._run(micro_batches, objective)
        sums, maxima = self._reduced(outcomes, num_sums)
        overflow = built.optimizer.prepare_grads()
        norm = float(built.optimizer.get_grad_norm())
        loss, scale = float(sums[0]), goal.lr_scale(sums) if goal else 1.0
        if parallel.any_rank(bool(overflow) or not all(map(math.isfinite, (norm, loss, scale))), self.device):
            built.optimizer.zero_grad()
            raise LearnerError(
                f"{where}: loss {loss}, gradient norm {norm}: not finite. The step was refused, the weights are as before it. "
                "Look for non-finite rewards, advantages or log-probs in the saved batch; a lower --lr or --clip-grad may help"
            )
        if goal and goal.off_policy(maxima):
            built.optimizer.zero_grad()
            raise self._not_on_policy(goal, where)
        extra = self._extra_metrics(outcomes) if goal and goal.has_extra_metrics else {}
        built.clip_gradients(norm)
        with built.scaled_lr(scale):
            lr = built.lr
            built.optimizer.step_with_ready_grads()
        return Found(sums, maxima, extra, norm, lr)

    def _reduced(self, outcomes: Sequence[Outcome], num_sums: int) -> tuple[Tensor, Tensor]:
        """(sums, maxima) over micro-batches and ranks."""
        sums = sum((o.sums for o in outcomes), start=torch.zeros(num_sums, device=self.device)) if outcomes else None
        maxima = torch.stack([o.maxima for o in outcomes]).amax(0) if outcomes else None
        like = (torch.zeros(num_sums, device=self.device), torch.zeros(len(MAXIMA), device=self.device))
        return parallel.reduce_metrics(sums, maxima, like)

    def _not_on_policy(self, goal: Goal, where: str) -> LearnerError:
        """The same error on every rank."""
        worst = max(Worst(*w) for w in parallel.gather_over_world(tuple(goal.worst) if parallel.reports() else (0.0, "")))
        return LearnerError(
            f"{where}: --true-on-policy-mode, but the ratio old/rollout is {worst.mismatch:.3g} from 1 (--true-on-policy-tolerance "
            f"{goal.config.true_on_policy_tolerance:g}) at {worst.token}. The step was refused. Engine and learner must have the same "
            "weights, dtype and kernels: see --dtype and the engines' attention flags, or drop the mode and correct instead (--use-tis)"
        )

    def _extra_metrics(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """Sums of what a user's function reported, over micro-batches and ranks."""
        own: dict[str, float] = {}
        for outcome in outcomes if parallel.reports() else ():
            for name, value in outcome.extra.items():
                own[name] = own.get(name, 0.0) + float(value)
        total: dict[str, float] = {}
        for part in parallel.gather_over_world(own):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def _run(self, micro_batches: Sequence[Prepared], objective: Objective, *, forward_only: bool = False) -> list[Outcome]:
        """Forward and backward over this rank's micro-batches; the outcome of each on the last pipeline stage, else nothing."""
        # Megatron divides the loss by the micro-batches and the gradients by the data-parallel size; ours are shares of a sum.
        scale = len(micro_batches) * parallel.data_parallel_size()

        def loss_of(prepared: Prepared, logits: Tensor, non_loss_data: bool = False) -> Any:
            outcome = objective(logits, self._passes.log_probs(logits, prepared.batch, with_entropy=True), prepared)
            found = outcome._replace(loss=outcome.loss.detach())
            return found if non_loss_data else (outcome.loss * scale, found)

        return self._passes.run(micro_batches, loss_of, forward_only=forward_only)

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
        if not self._offload.is_out:
            self._built.finish_param_gather()
            return self._built.bridge.hf_weights(self._built.models)
        return self._lent_weights()

    def _lent_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Copies: what they are made from is gone again when the last is taken."""
        with self._offload.weights_present():
            for name, tensor in self._built.bridge.hf_weights(self._built.models):
                yield name, tensor.clone()

    # ---- the device

    def offload(self) -> None:
        """Leave the device: weights, gradients and optimizer state (and the critic's) go to the host. Pushes and saves still work."""
        self._offload.out()

    def onload(self) -> None:
        """The opposite, ahead of a step."""
        self._offload.back()

    # ---- checkpoints

    def export_hf(self, path: Path) -> None:
        """Write `path` as a Hugging Face folder: safetensors, config.json, tokenizer files. Every rank calls it."""
        with self._offload.weights_present():
            if not self._offload.is_out:
                self._built.finish_param_gather()
            checkpoint.export_hf(self._built.bridge.hf_weights(self._built.models), self._built.hf_folder, path, write=self.rank == 0)
        dist.barrier()

    def save(self, path: Path) -> None:
        """Write `path`/torch_dist (weights, optimizer, schedule), `path`/reference, `path`/critic and `path`/hf. Every rank calls it."""
        with self._offload.present():
            self._built.finish_param_gather()
            checkpoint.save(self._built, path / "torch_dist")
            if self._reference:
                self._reference.save(path / "reference")
            if self._critic is not None:
                self._critic.save(path)
            self.export_hf(path / "hf")

    def load(self, path: Path) -> None:
        """Read what `save` wrote under `path`. Raises CheckpointError on every rank when it is not there or does not fit.

        A run that had no reference leaves ours as it was built: --ref-load, or --hf-checkpoint.
        """
        with self._offload.present():
            checkpoint.load(self._built, path / "torch_dist")
            if self._reference and (path / "reference").is_dir():
                self._reference.load(path / "reference")
            if self._critic is not None:
                self._critic.load(path)

    def close(self) -> None:
        """Leave the process groups. The object is of no use afterwards."""
        parallel.shutdown()


def _over_steps(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the optimizer steps that have the metric (a staleness may occur in some only), largest ratio, sum of tokens."""
    names = dict.fromkeys(name for r in results for name in r)
    values = {name: [r[name] for r in results if name in r] for name in names}
    metrics = {name: sum(v) / len(v) for name, v in values.items()}
    metrics.update({name: max(v) for name, v in values.items() if name in LARGEST})
    return {**metrics, "num_loss_tokens": sum(values["num_loss_tokens"])}
