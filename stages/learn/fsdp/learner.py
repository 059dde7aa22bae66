"""One learner rank on the Hugging Face model: shards of weights, gradients and optimizer; passes
over packed micro-batches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.core.batch_share import StepShare
from pipeline.core.devices import has_gpu
from pipeline.core.errors import ConfigError, LearnerError
from pipeline.core.flops import read_cost
from stages.learn import rendezvous
from stages.learn.fsdp import checkpoint
from stages.learn.fsdp.attention import attention_arguments
from stages.learn.fsdp.image_inputs import Vision
from stages.learn.fsdp.model import build_model
from stages.learn.fsdp.optim import Optimizer
from stages.learn.fsdp.packing import MicroBatch, pack
from stages.learn.fsdp.reference import Reference
from stages.learn.fsdp.weights import exported, whole_state
from stages.learn.hf_folder import write_hf_folder
from stages.learn.log_prob_pass import Prepared
from stages.learn.losses import TokenLogProbs, compute_log_probs_from_logits
from stages.learn.meter import StepMeter
from stages.learn.outcome import Outcome
from stages.learn.rank import LearnerRank, Objective
from stages.learn.settings import LearnerSettings
from stages.learn.step_objective import StepObjective

FOLDER = "fsdp"  # in a snapshot, beside hf


class FSDPRank(LearnerRank):
    """One process's part of the learner, which does its own forward passes.

    It initialises the process group, so only one may live in a process at a time.

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
        self._num_looked = self._num_trained = 0  # tokens
        self.device = _device(settings)
        if not settings.model.hf_checkpoint:
            raise ConfigError("--hf-checkpoint is not given: the folder of the model to train")
        self._folder = Path(settings.model.hf_checkpoint)
        self._dtype = _dtype(settings.model.dtype, self.device)
        torch.manual_seed(settings.seed)
        rendezvous.init_process_group(self.device, rank=rank, world_size=world_size, store=store)
        try:
            goal = StepObjective(settings)
            checkpointing = settings.model.gradient_checkpointing
            self._model, self._attention = build_model(
                self._folder,
                device=self.device,
                dtype=self._dtype,
                gradient_checkpointing=checkpointing,
            )
            self._vision = (
                Vision(self._model)
                if getattr(self._model.config, "vision_config", None) is not None
                else None
            )
            self._optimizer = Optimizer(self._model, settings)
            self._kept = (
                Reference(self._model, settings.algorithm.ref_load)
                if goal.needs_reference
                else None
            )
            cost = read_cost(self._folder, shares_prompts=False)
            self._begin(goal, self, self._kept, StepMeter(self.device, cost, world_size, now))
        except BaseException:
            self.close()
            raise

    # ---- passes

    def _pack(self, step: StepShare) -> list[MicroBatch]:
        mine, vision = step.micro_batches, self._vision
        if not mine:
            raise LearnerError(
                "an optimizer step without micro-batches: every rank needs at least one, and"
                " equally many"
            )
        if vision is None:
            if step.has_images:
                raise LearnerError(
                    "samples with multimodal_train_inputs, but the model does not see (no"
                    " vision_config in its config.json)"
                )
            return [pack(samples, self.device) for samples in mine]
        if step.has_images:
            mine = tuple(
                mb if any(s.multimodal for s in mb) else (*mb, vision.blank()) for mb in mine
            )
        return [pack(samples, self.device, vision.positions) for samples in mine]

    def _logits(self, batch: MicroBatch) -> Tensor:
        """[1, N, V] of the trained tokens only."""
        how = attention_arguments(self._attention, batch.packing)
        what = {
            "input_ids": batch.tokens,
            "position_ids": batch.positions,
            "logits_to_keep": batch.rows,
            **batch.media,
        }
        out = self._model(**what, use_cache=False, **how)
        logits: Tensor = out.logits
        return logits

    def _log_probs(self, logits: Tensor, batch: MicroBatch, *, with_entropy: bool) -> TokenLogProbs:
        return compute_log_probs_from_logits(
            logits.squeeze(0),
            batch.targets,
            temperature=self.settings.temperature,
            with_entropy=with_entropy,
            chunk_size=self.settings.algorithm.log_probs_chunk_size,
        )

    @property
    def sees(self) -> bool:
        return True

    def log_probs_now(self, micro_batches: Sequence[Prepared]) -> list[Tensor]:
        """Log-probs under the weights that the model has now, without gradients."""
        self._num_looked += sum(p.batch.num_tokens for p in micro_batches)
        with self._without_gradients():
            return [
                self._log_probs(self._logits(p.batch), p.batch, with_entropy=False).log_probs
                for p in micro_batches
            ]

    def with_old(self, micro_batches: Sequence[Prepared]) -> list[Prepared]:
        return [
            p._replace(old=old)
            for p, old in zip(micro_batches, self.log_probs_now(micro_batches), strict=True)
        ]

    def with_reference(self, micro_batches: Sequence[Prepared]) -> list[Prepared]:
        return [
            p._replace(ref=ref)
            for p, ref in zip(micro_batches, self.log_probs_now(micro_batches), strict=True)
        ]

    @property
    def data_group(self) -> Any:
        return dist.group.WORLD

    def gather(self, value: Any) -> list[Any]:
        return rendezvous.gather_over_world(value)

    @property
    def _tokens_passed(self) -> tuple[int, int]:
        return self._num_looked, self._num_trained

    @contextlib.contextmanager
    def _without_gradients(self) -> Iterator[None]:
        """Lets go of the root's gathered weights afterwards: FSDP keeps them for a backward pass
        that never comes, and other weights may be put in."""
        with torch.no_grad():
            try:
                yield
            finally:
                self._model.reshard()

    def _run(
        self, micro_batches: Sequence[Prepared], objective: Objective, *, forward_only: bool = False
    ) -> list[Outcome]:
        outcomes = []
        passed = sum(p.batch.num_tokens for p in micro_batches)
        self._num_looked += passed if forward_only else 0
        self._num_trained += 0 if forward_only else passed
        with self._without_gradients() if forward_only else contextlib.nullcontext():
            for prepared in micro_batches:
                logits = self._logits(prepared.batch)
                outcome = objective(
                    logits, self._log_probs(logits, prepared.batch, with_entropy=True), prepared
                )
                if not forward_only:
                    # FSDP takes the mean over ranks; ours are shares of a sum
                    (outcome.loss * self.world_size).backward()
                outcomes.append(outcome._replace(loss=outcome.loss.detach()))
        return outcomes

    # ---- the optimizer

    def _zero_grad(self) -> None:
        self._optimizer.zero_grad()

    def _grad_norm(self) -> float:
        return self._optimizer.grad_norm()

    def _update(self, grad_norm: float, *, lr: float | None, scale: float) -> float:
        used = (self._optimizer.lr if lr is None else lr) * scale
        self._optimizer.update(grad_norm, used)
        return used

    def _advance_schedule(self) -> None:
        self._optimizer.num_steps += 1

    def _forget(self) -> None:
        self._optimizer.reset()

    # ---- weights and checkpoints

    @property
    def dp_rank(self) -> int:
        return self.rank

    @property
    def dp_size(self) -> int:
        return self.world_size

    def hf_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, whole tensor) of all weights in --dtype, gathered one at a time;
        every rank iterates to the end.

        Tensors may share memory with the model: copy what must outlive the next step.
        """
        for name, tensor in self._state().items():
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            yield from exported(
                self._model, name, whole.to(self._dtype) if whole.is_floating_point() else whole
            )

    def describe_sent(self) -> list[tuple[str, str, list[int]]]:
        """(name, dtype, shape) of the weights that this rank sends in a push, in order: rank 0 all,
        the others none."""
        return [
            (n, str(t.dtype).removeprefix("torch."), list(t.shape))
            for name, tensor in self._state().items()
            if self.rank == 0
            for n, t in exported(
                self._model,
                name,
                torch.empty(
                    tensor.shape,
                    dtype=self._dtype if tensor.is_floating_point() else tensor.dtype,
                    device="meta",
                ),
            )
        ]

    def sent_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, whole tensor) of the same; every rank iterates to the end."""
        for weight in self.hf_weights():
            if self.rank == 0:
                yield weight

    def export_hf(self, path: Path) -> None:
        """Writes `path` as a Hugging Face folder: safetensors, config.json, tokenizer files.

        Every rank calls it."""
        if self.rank == 0:
            write_hf_folder(self.hf_weights(), self._folder, path)
        else:
            for _ in self.hf_weights():  # gathered over all ranks
                pass
        dist.barrier()

    def publish_hf(self, path: Path) -> None:
        """The same, for a push."""
        self.export_hf(path)

    def save(self, path: Path, hf: Path | EllipsisType | None = ...) -> None:
        """Writes `path`/fsdp (weights, optimizer, schedule), `path`/reference and the Hugging Face
        folder `hf` (by default `path`/hf; None: no such folder). Every rank calls it."""
        tensors = {
            **{f"model.{n}": t for n, t in self._state().items()},
            **self._optimizer.tensors(),
        }
        checkpoint.save(path / FOLDER, tensors, self._optimizer.counts())
        if self._kept:
            self._kept.save(path / "reference")
        if hf is not None:
            self.export_hf(path / "hf" if isinstance(hf, EllipsisType) else hf)

    def load(self, path: Path) -> None:
        """Reads what `save` wrote under `path`, with any number of ranks. Raises CheckpointError on
        every rank when it is not there or does not fit.

        A checkpoint without a reference leaves ours as it was built: from --ref-load, or
        --hf-checkpoint."""
        tensors = {
            **{f"model.{n}": t for n, t in self._state().items()},
            **self._optimizer.tensors(),
        }
        self._optimizer.load_counts(checkpoint.load(path / FOLDER, tensors))
        if self._kept and (path / "reference").is_dir():
            self._kept.load(path / "reference")

    def _state(self) -> dict[str, Any]:
        """Parameters (sharded) and the buffers that checkpoints have, by the model's names; they
        share its memory."""
        return whole_state(self._model)

    def close(self) -> None:
        """Leaves the process group. The object is of no use afterwards."""
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError):  # a peer that died first has closed the sockets
                dist.destroy_process_group()


def _device(settings: LearnerSettings) -> torch.device:
    asked, there = settings.model.device, has_gpu()
    if asked == "cuda" and not there:
        raise ConfigError("--device cuda: this process sees no CUDA device")
    return (
        torch.device("cuda", torch.cuda.current_device())
        if there and asked != "cpu"
        else torch.device("cpu")
    )


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return getattr(torch, name)
