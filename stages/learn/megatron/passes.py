"""Micro-batches through the model: packed, run by Megatron's schedule, their logits turned into log-probs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.errors import LearnerError
from pipeline.types import MicroBatch, TrainSample
from stages.learn.losses import CHUNK_SIZE, TokenLogProbs
from stages.learn.megatron.build import Built
from stages.learn.megatron.objective import log_probs_of
from stages.learn.megatron.packing import PackedMicroBatch, pack


class Packed(Protocol):
    """A micro-batch, and whatever its last stage needs."""

    @property
    def batch(self) -> PackedMicroBatch: ...


class Prepared(NamedTuple):
    """A micro-batch with what was computed ahead of its optimizer step (on the last pipeline stage; others have None)."""

    batch: PackedMicroBatch
    old: Tensor | None = None  # old log-probs; None: equal to the new ones
    ref: Tensor | None = None


class Passes:
    """This rank's forward and backward passes."""

    def __init__(self, built: Built, temperature: float, *, chunk_size: int = CHUNK_SIZE, own_logits: bool = False) -> None:
        """`own_logits`: nobody but `log_probs` looks at the logits. They stay in the model's type, and their gradient takes their place."""
        self._built, self._temperature = built, temperature
        self._chunk_size, self._own_logits = chunk_size, own_logits
        half = built.bridge.config.bf16 or built.bridge.config.fp16
        self.tokens_forward_only = self.tokens_trained = 0  # that went through, since the start
        self._options = {"fp32_output": False} if own_logits and half else {}  # of Float16Module

    def pack(self, per_rank: tuple[tuple[MicroBatch, ...], ...]) -> list[PackedMicroBatch]:
        built = self._built
        if len(per_rank) != built.dp_size:
            raise LearnerError(f"the batch is cut for {len(per_rank)} data-parallel ranks, the learner has {built.dp_size}")
        if not per_rank[built.dp_rank]:
            raise LearnerError("an optimizer step without micro-batches: every rank needs at least one, and equally many")
        return [self.pack_one(mb) for mb in per_rank[built.dp_rank]]

    def pack_one(self, samples: Sequence[TrainSample]) -> PackedMicroBatch:
        built = self._built
        return pack(samples, built.device, thd=built.thd, multiple_of=built.token_multiple)

    def log_probs(self, logits: Tensor, mb: PackedMicroBatch, *, with_entropy: bool) -> TokenLogProbs:
        shard = self._built.vocab_shard
        temperature = self._temperature
        return log_probs_of(
            logits,
            mb,
            temperature=temperature,
            vocab_shard=shard,
            with_entropy=with_entropy,
            chunk_size=self._chunk_size,
            overwrite_logits=self._own_logits,
        )

    def log_probs_now(self, micro_batches: Sequence[Prepared]) -> list[Tensor | None]:
        """Log-probs under the weights that the model has now, without gradients. None for each on stages before the last."""

        def keep(prepared: Prepared, logits: Tensor, non_loss_data: bool = True) -> Tensor:
            return self.log_probs(logits, prepared.batch, with_entropy=False).log_probs

        with torch.no_grad():
            found = self.run(micro_batches, keep, forward_only=True)
        return found or [None] * len(micro_batches)

    def run(self, micro_batches: Sequence[Packed], last_stage: Callable[..., Any], *, forward_only: bool) -> list[Any]:
        """Megatron's schedule over the micro-batches; `last_stage(micro_batch, output)` gives what is collected of each."""

        def forward(source: Iterator[Packed], model: Any) -> tuple[Tensor, Callable[..., Any]]:
            prepared = next(source)
            mb = prepared.batch
            logits = model(mb.tokens, mb.positions, None, packed_seq_params=mb.packing, loss_mask=mb.rows, **self._options)
            return logits, lambda out, **kwargs: last_stage(prepared, out, **kwargs)

        passed = sum(p.batch.num_tokens for p in micro_batches)
        self.tokens_forward_only += passed if forward_only else 0
        self.tokens_trained += 0 if forward_only else passed
        models = self._built.ddp
        longest = max(p.batch.num_inputs for p in micro_batches)
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
