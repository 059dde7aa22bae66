"""Micro-batches through the model: packed, run by Megatron's schedule, their logits turned into log-probs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.errors import LearnerError
from pipeline.types import MicroBatch
from stages.learn.losses import TokenLogProbs
from stages.learn.megatron.build import Built
from stages.learn.megatron.context import Share, whole
from stages.learn.megatron.objective import log_probs_of
from stages.learn.megatron.packing import PackedMicroBatch, pack
from stages.learn.megatron.virtual import in_multiples


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

    def __init__(self, built: Built, temperature: float) -> None:
        self._built, self._temperature = built, temperature

    def pack(self, per_rank: tuple[tuple[MicroBatch, ...], ...]) -> list[PackedMicroBatch]:
        built = self._built
        if len(per_rank) != built.dp_size:
            raise LearnerError(f"the batch is cut for {len(per_rank)} data-parallel ranks, the learner has {built.dp_size}")
        if not per_rank[built.dp_rank]:
            raise LearnerError("an optimizer step without micro-batches: every rank needs at least one, and equally many")
        if len(built.ddp) > 1:
            per_rank = in_multiples(per_rank, built.bridge.config.microbatch_group_size_per_vp_stage)
        share = Share.of_this_rank()
        return [pack(mb, built.device, thd=built.thd, multiple_of=built.token_multiple, share=share) for mb in per_rank[built.dp_rank]]

    def log_probs(self, logits: Tensor, mb: PackedMicroBatch, *, with_entropy: bool) -> TokenLogProbs:
        shard = self._built.vocab_shard
        temperature = self._temperature
        found = log_probs_of(logits, mb, temperature=temperature, vocab_shard=shard, with_entropy=with_entropy)
        if mb.own is None:
            return found
        # Whole samples on every context-parallel rank: means and ratios over a sample are then what they are on one.
        columns = [c for c in found if c is not None]
        return TokenLogProbs(*whole(torch.stack(columns, -1), mb.own, len(mb.targets)).unbind(-1), *([None] * (2 - len(columns))))

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
            logits = model(mb.tokens, mb.positions, None, packed_seq_params=mb.packing, loss_mask=mb.rows)
            return logits, lambda out, **kwargs: last_stage(prepared, out, **kwargs)

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
