"""One learner rank on Megatron: its model, gradient reduction, optimizer and schedule under the
algorithm of `stages.learn.rank`."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch.distributed as dist
from torch import Tensor

from pipeline.core.batch_share import BatchShare, StepShare
from pipeline.core.errors import LearnerError
from pipeline.core.flops import read_cost
from stages.learn.log_prob_pass import Prepared
from stages.learn.megatron import checkpoint, parallel
from stages.learn.megatron.assemble import RankParts, build
from stages.learn.megatron.async_save import SnapshotWriter, hf_job, torch_dist_job
from stages.learn.megatron.balance import Balance
from stages.learn.megatron.context import whole
from stages.learn.megatron.critic import Critic
from stages.learn.megatron.offload import Offload
from stages.learn.megatron.packing import PackedMicroBatch
from stages.learn.megatron.passes import MegatronPasses
from stages.learn.megatron.reference import Reference
from stages.learn.megatron.routing import Routing
from stages.learn.megatron.sent import SentWeights
from stages.learn.megatron.user_hooks import MegatronHooks
from stages.learn.meter import StepMeter
from stages.learn.objective import penalised_rewards
from stages.learn.outcome import Outcome
from stages.learn.rank import LearnerRank, Objective, StepMeasurements
from stages.learn.settings import LearnerSettings
from stages.learn.step_objective import StepObjective


class MegatronRank(LearnerRank):
    """One process's part of the learner. Initialises the process groups; only one may live in a
    process at a time.

    Raises ConfigError for flags that contradict each other, CheckpointError for a model folder that
    cannot be used."""

    def __init__(
        self,
        settings: LearnerSettings,
        *,
        rank: int = 0,
        world_size: int = 1,
        store: dist.Store | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.settings, self.rank, self.world_size = settings, rank, world_size
        try:
            self._built: RankParts = build(settings, rank=rank, world_size=world_size, store=store)
            self._critic = (
                Critic(settings, self._built)
                if settings.algorithm.advantage_estimator == "ppo"
                else None
            )
            self.device = self._built.device
            self._balance = Balance(self._built.models, self._built.bridge.config)
            self._routing = self._make_routing()
            self._hooks = MegatronHooks(settings)
            self._passes = self._make_passes()
            goal = StepObjective(settings)
            cost = read_cost(self._built.hf_folder, shares_prompts=not self._built.thd)
            meter = StepMeter(self.device, cost, world_size, now)
            self._kept = self._make_reference(goal)
            self._begin(goal, self._passes, self._kept, meter)
            self._offload = Offload(
                [self._built, *([self._critic.built] if self._critic is not None else [])]
            )
            self._saves = SnapshotWriter()
            self._sent = SentWeights(self._built.bridge, self._built.models)
        except BaseException:
            parallel.shutdown()
            raise

    def _make_routing(self) -> Routing | None:
        algorithm, built = self.settings.algorithm, self._built
        if not (algorithm.use_rollout_routing_replay or algorithm.use_routing_replay):
            return None
        return Routing(built.models, built.ddp, built.bridge.config, algorithm, built.device)

    def _make_passes(self) -> MegatronPasses:
        a = self.settings.algorithm
        return MegatronPasses(
            self._built,
            self.settings.temperature,
            self._routing,
            chunk_size=a.log_probs_chunk_size,
            own_logits=a.custom_loss_function_path is None,
            max_tokens_ahead=a.log_probs_max_tokens_per_gpu,
            before=self._hooks.before_log_probs,
        )

    def _before_step(self, rollout_id: int, step_id: int) -> None:
        self._hooks.before_step(self._built, rollout_id, step_id)

    def _make_reference(self, goal: StepObjective) -> Reference | None:
        if not goal.needs_reference:
            return None
        reference = Reference(self._built)
        if self.settings.algorithm.ref_load:
            reference.load_weights(Path(self.settings.algorithm.ref_load))
        return reference

    # ---- passes

    def _pack(self, step: StepShare) -> list[PackedMicroBatch]:
        packed = self._passes.pack(step)
        if self.settings.algorithm.use_rollout_routing_replay and any(
            mb.routed_experts is None for mb in packed
        ):
            raise LearnerError(
                "the rollout has samples with no routed experts: --use-rollout-routing-replay needs"
                " them all"
            )
        return packed

    def _run(
        self, micro_batches: Sequence[Prepared], objective: Objective, *, forward_only: bool = False
    ) -> list[Outcome]:
        # Megatron divides the loss by the micro-batches and the gradients by the data-parallel
        # size; ours are shares of a sum. (The context-parallel size is in both: the schedule
        # multiplies by it.)
        scale = len(micro_batches) * self._built.dp_size

        def loss_of(prepared: Prepared, logits: Tensor, non_loss_data: bool = False) -> Any:
            now = self._passes.log_probs(logits, prepared.batch, with_entropy=True)
            if self._goal.wants_logits:
                logits = whole(logits[0], prepared.batch.own, len(prepared.batch.targets))[None]
            outcome = objective(logits, now, prepared)
            found = outcome._replace(loss=outcome.loss.detach())
            return found if non_loss_data else (outcome.loss * scale, found)

        return self._passes.run(micro_batches, loss_of, forward_only=forward_only)

    def _reports(self) -> bool:
        return parallel.reports()

    def _reduce(
        self, sums: Tensor | None, maxima: Tensor | None, like: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        return parallel.reduce_metrics(sums, maxima, like)

    @property
    def _tokens_passed(self) -> tuple[int, int]:
        return self._passes.tokens_forward_only, self._passes.tokens_trained

    def _policy_step(
        self,
        step: StepShare,
        micro_batches: list[Prepared],
        where: str,
        *,
        first: bool,
        taken: bool,
    ) -> dict[str, float]:
        if self._routing:
            self._routing.reset_mismatch()
        return super()._policy_step(step, micro_batches, where, first=first, taken=taken)

    def _own_metrics(self, num_micro_batches: int, *, taken: bool) -> dict[str, float]:
        found = self._balance.metrics(num_micro_batches) if taken else {}
        mismatch = self._routing.take_mismatch() if self._routing else None
        return found if mismatch is None else {**found, "routing_mismatch": mismatch}

    # ---- the optimizer

    def _optimizer_step(self, *args: Any, **kwargs: Any) -> StepMeasurements:
        with self._balance.restored_on_error():
            return super()._optimizer_step(*args, **kwargs)

    def _zero_grad(self) -> None:
        for model in self._built.ddp:
            model.zero_grad_buffer()
        self._built.optimizer.zero_grad()

    def _grad_norm(self) -> float:
        overflow = self._built.optimizer.prepare_grads()
        norm = float(self._built.optimizer.get_grad_norm())
        return math.inf if overflow else norm

    def _update(self, grad_norm: float, *, lr: float | None, scale: float) -> float:
        built = self._built
        built.clip_gradients(grad_norm)
        with built.scaled_lr(scale) if lr is None else built.at_lr(lr):
            used = built.lr
            built.optimizer.step_with_ready_grads()
        return used

    def _advance_schedule(self) -> None:
        self._built.scheduler.step(increment=1)

    def _forget(self) -> None:
        self._built.reset_optimizer()

    # ---- the critic

    def _criticise(
        self, batch: BatchShare, prepared: list[list[Prepared]]
    ) -> tuple[list[list[Prepared]], dict[str, float], bool]:
        """With ppo: the critic makes advantages of the token rewards, and takes its own steps."""
        if self._critic is None:
            return prepared, {}, True
        rewarded = [[self._with_rewards(p) for p in step] for step in prepared]
        packed, targets = self._critic.estimate(rewarded)
        metrics = self._critic.train(batch, packed, targets)
        filled = [
            [p._replace(batch=mb) for p, mb in zip(*pair, strict=True)]
            for pair in zip(prepared, packed, strict=True)
        ]
        return filled, metrics, not self._critic.is_alone(batch.rollout_id)

    def _with_rewards(self, prepared: Prepared) -> PackedMicroBatch:
        """Token rewards, less the KL to the reference with --kl-coef.

        Only the last pipeline stage looks at them, and has both.
        """
        mb: PackedMicroBatch = prepared.batch
        if prepared.old is None or prepared.ref is None:
            return mb
        return dataclasses.replace(
            mb,
            advantages=penalised_rewards(mb, prepared.old, prepared.ref, self.settings.algorithm),
        )

    # ---- weights and checkpoints

    @property
    def dp_rank(self) -> int:
        return self._built.dp_rank

    @property
    def dp_size(self) -> int:
        return self._built.dp_size

    def hf_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, whole tensor) of all weights; every rank iterates to the end, every
        rank gets them.

        Tensors may share memory with the model: copy what must outlive the next step.
        """
        if not self._offload.is_out:
            self._built.finish_param_gather()
            return self._built.bridge.hf_weights(self._built.models)
        return self._lent_weights()

    def _lent_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Copies of the weights: what they are made from is gone again when the last is taken."""
        with self._offload.weights_present():
            for name, tensor in self._built.bridge.hf_weights(self._built.models):
                yield name, tensor.clone()

    def describe_sent(self) -> list[tuple[str, str, list[int]]]:
        """(name, dtype, shape) of the weights that this rank sends in a push, in order. Every rank
        calls it."""
        return [
            (name, str(t.dtype).removeprefix("torch."), list(t.shape))
            for name, t in self._sent.described()
        ]

    def sent_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, whole tensor) of the same; every rank iterates to the end.

        Tensors may share memory with the model, and go when the next is taken: copy them.
        """
        with self._offload.weights_present():
            if not self._offload.is_out:
                self._built.finish_param_gather()
            yield from self._sent.gather()

    def publish_hf(self, path: Path) -> None:
        """Writes `path` as `export_hf` does, by the ranks that send in a push: each its own files.

        Every rank calls it."""
        with self._offload.weights_present():
            checkpoint.publish_hf(self.sent_weights(), self._built.hf_folder, path)

    # ---- the device

    def offload(self) -> None:
        """Leaves the device: weights, gradients and optimizer state (and the critic's) go to the
        host. Pushes and saves still work."""
        self._offload.out()

    def onload(self) -> None:
        """Comes back to the device, ahead of a step."""
        self._offload.back()

    # ---- checkpoints

    def export_hf(self, path: Path) -> None:
        """Writes `path` as a Hugging Face folder: safetensors, config.json, tokenizer files.

        Every rank calls it."""
        with self._offload.weights_present():
            if not self._offload.is_out:
                self._built.finish_param_gather()
            checkpoint.export_hf(
                self._built.bridge.hf_weights(self._built.models),
                self._built.hf_folder,
                path,
                write=self.rank == 0,
            )
        dist.barrier()

    def save(self, path: Path, hf: Path | EllipsisType | None = ...) -> None:
        """Writes `path`/torch_dist (weights, optimizer, schedule), `path`/reference, `path`/critic
        and the Hugging Face folder `hf` (by default `path`/hf). Every rank calls it.

        Returns when all of it is on the disk. --no-save-optim leaves optimizer and schedule out."""
        with self._offload.present():
            self._save(path, None)
            if hf is not None:
                self.export_hf(path / "hf" if isinstance(hf, EllipsisType) else hf)

    def begin_save(self, path: Path, hf: Path | None) -> None:
        """Copies all that `save` writes, and the weights for the Hugging Face folder `hf`; a thread
        writes the copies. Every rank calls it.

        What was begun before must have been finished."""
        with self._offload.present():
            jobs = self._save(path, torch_dist_job)
            if hf is not None:
                jobs.append(
                    hf_job(self.hf_weights(), self._built.hf_folder, hf, write=self.rank == 0)
                )
        self._saves.begin(jobs)

    def save_written(self) -> bool:
        """Has this rank's thread ended? Does not wait."""
        return self._saves.written()

    def finish_save(self) -> None:
        """Waits for the thread and makes what it wrote a checkpoint, on the disk.

        Every rank calls it. Raises CheckpointError on all when one failed."""
        self._saves.finish()

    def _save(self, path: Path, write: checkpoint.Write | None) -> list[Any]:
        self._built.finish_param_gather()
        optimizer = self.settings.config.run.save_optim
        jobs = [checkpoint.save(self._built, path / "torch_dist", optimizer=optimizer, write=write)]
        if self._kept:
            jobs.append(self._kept.save(path / "reference", write=write))
        if self._critic is not None:
            jobs.append(self._critic.save(path, optimizer=optimizer, write=write))
        return jobs

    def load(self, path: Path) -> None:
        """Reads what `save` wrote under `path`. Raises CheckpointError on every rank when it is not
        there or does not fit.

        A checkpoint without a reference leaves ours as it was built: from --ref-load, or
        --hf-checkpoint."""
        optimizer = self.settings.config.run.load_optim
        with self._offload.present():
            checkpoint.load(self._built, path / "torch_dist", optimizer=optimizer)
            if self._kept and (path / "reference").is_dir():
                self._kept.load(path / "reference")
            if self._critic is not None:
                self._critic.load(path, optimizer=optimizer)

    def close(self) -> None:
        """Leaves the process groups. The object is of no use afterwards."""
        parallel.shutdown()
