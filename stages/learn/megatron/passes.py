"""Micro-batches through the model: packed, run by Megatron's schedule, their logits turned into
log-probs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from megatron.core import parallel_state as mpu
from torch import Tensor

from pipeline.core.batch_share import StepShare
from pipeline.core.errors import LearnerError
from pipeline.core.types import TrainSample
from stages.learn import rendezvous
from stages.learn.log_prob_pass import Prepared
from stages.learn.losses import CHUNK_SIZE, TokenLogProbs
from stages.learn.megatron import parallel
from stages.learn.megatron.assemble import RankParts
from stages.learn.megatron.context import ContextShare, whole
from stages.learn.megatron.loss_shares import apart, divide, join
from stages.learn.megatron.objective import log_probs_of
from stages.learn.megatron.packing import PackedMicroBatch, pack
from stages.learn.megatron.routing import Mode, Routing
from stages.learn.megatron.user_hooks import REFERENCE_PREFIX
from stages.learn.megatron.virtual import in_multiples


class Packed(Protocol):
    """A micro-batch, and whatever its last stage needs."""

    @property
    def batch(self) -> PackedMicroBatch: ...


class MegatronPasses:
    """This rank's forward and backward passes.

    Implements `stages.learn.log_prob_pass.ForwardPasses`."""

    def __init__(
        self,
        built: RankParts,
        temperature: float,
        routing: Routing | None = None,
        *,
        chunk_size: int = CHUNK_SIZE,
        own_logits: bool = False,
        max_tokens_ahead: int | None = None,
        before: Callable[[RankParts, str], None] = lambda built, prefix: None,
    ) -> None:
        """`routing`: where routed experts are replayed. `own_logits`: nobody but `log_probs` looks
        at the logits. They stay in the model's type, and their gradient takes their place.
        `max_tokens_ahead`: of a micro-batch without gradients; None: as in a step.
        `before`: called ahead of old and reference log-probs, with the prefix of their name."""
        self._before = before
        self._built, self._temperature, self._routing = built, temperature, routing
        self._chunk_size, self._own_logits, self._max_tokens_ahead = (
            chunk_size,
            own_logits,
            max_tokens_ahead,
        )
        half = built.bridge.config.bf16 or built.bridge.config.fp16
        self.tokens_forward_only = self.tokens_trained = 0  # that went through, since the start
        self._options = {"fp32_output": False} if own_logits and half else {}  # of Float16Module

    def pack(self, step: StepShare) -> list[PackedMicroBatch]:
        built, micro_batches = self._built, step.micro_batches
        if not micro_batches:
            raise LearnerError(
                "an optimizer step without micro-batches: every rank needs at least one, and"
                " equally many"
            )
        if len(built.ddp) > 1:
            micro_batches = in_multiples(
                micro_batches,
                built.bridge.config.microbatch_group_size_per_vp_stage,
                fewest_samples=step.fewest_samples,
            )
        return [self.pack_one(mb) for mb in micro_batches]

    def pack_one(self, samples: Sequence[TrainSample]) -> PackedMicroBatch:
        """The packed micro-batch. Raises LearnerError for samples that do not fit the model, or
        contradict themselves."""
        built, routing = self._built, self._routing
        if routing is not None:
            for sample in samples:
                routing.check(sample)
        layers = routing.layers if routing is not None else ()
        share, multiple = ContextShare.of_this_rank(), built.token_multiple
        packed = pack(
            samples,
            built.device,
            thd=built.thd,
            varlen=built.varlen,
            multiple_of=multiple,
            share=share,
            expert_layers=layers,
        )
        return (
            packed
            if routing is None
            else dataclasses.replace(packed, routed_experts=routing.own_tokens(packed))
        )

    def log_probs(
        self, logits: Tensor, mb: PackedMicroBatch, *, with_entropy: bool
    ) -> TokenLogProbs:
        shard = self._built.vocab_shard
        temperature = self._temperature
        found = log_probs_of(
            logits,
            mb,
            temperature=temperature,
            vocab_shard=shard,
            with_entropy=with_entropy,
            chunk_size=self._chunk_size,
            overwrite_logits=self._own_logits,
        )
        if mb.own is None:
            return found
        # Whole samples on every context-parallel rank: means and ratios over a sample are then what
        # they are on one.
        columns = [c for c in found if c is not None]
        return TokenLogProbs(
            *whole(torch.stack(columns, -1), mb.own, len(mb.targets)).unbind(-1),
            *([None] * (2 - len(columns))),
        )

    def with_old(self, micro_batches: Sequence[Prepared]) -> list[Prepared]:
        """The micro-batches with the old log-probs, under the weights that the model has now; for
        R2 also with the experts that they went through."""
        self._before(self._built, "")
        captures = self._routing is not None and self._routing.captures
        old = (
            self.log_probs_now(micro_batches, routing="capture")
            if captures
            else self._ahead(micro_batches, "replay")
        )
        out = [p._replace(old=o) for p, o in zip(micro_batches, old, strict=True)]
        if self._routing is None or not captures:
            return out
        took = [self._routing.take_captured(p.batch) for p in micro_batches]
        return [
            p._replace(batch=dataclasses.replace(p.batch, routed_experts=t))
            for p, t in zip(out, took, strict=True)
        ]

    def with_reference(self, micro_batches: Sequence[Prepared]) -> list[Prepared]:
        """The micro-batches with the log-probs of the reference, whose weights are in the model
        now.

        The reference routes freely."""
        self._before(self._built, REFERENCE_PREFIX)
        found = self._ahead(micro_batches, "free")
        return [p._replace(ref=ref) for p, ref in zip(micro_batches, found, strict=True)]

    def _ahead(self, micro_batches: Sequence[Prepared], routing: Mode) -> list[Tensor | None]:
        """Log-probs now, through fewer and larger micro-batches where
        --log-probs-max-tokens-per-gpu allows."""
        packed = [p.batch for p in micro_batches]
        if self._max_tokens_ahead is None:
            return self.log_probs_now(micro_batches, routing=routing)
        runs = join([mb.num_tokens for mb in packed], self._max_tokens_ahead)
        group = (
            self._built.bridge.config.microbatch_group_size_per_vp_stage
            if len(self._built.ddp) > 1
            else 1
        )
        # ranks must go through the model equally often
        most = int(rendezvous.largest(len(runs), self._built.device))
        runs = divide(runs, -(-most // group) * group)
        wide = [self.pack_one([s for i in run for s in packed[i].samples]) for run in runs]
        found = self.log_probs_now([Prepared(mb) for mb in wide], routing=routing)
        return apart([mb.samples for mb in packed], runs, wide, found)

    @property
    def sees(self) -> bool:
        return parallel.is_last_stage()

    @property
    def data_group(self) -> Any:
        return mpu.get_data_parallel_group()

    def gather(self, value: Any) -> list[Any]:
        return parallel.gather_over_data_ranks(value)

    def log_probs_now(
        self, micro_batches: Sequence[Prepared], *, routing: Mode = "replay"
    ) -> list[Tensor | None]:
        """Log-probs under the weights that the model has now, without gradients.

        None for each on stages before the last.
        """

        def keep(prepared: Prepared, logits: Tensor, non_loss_data: bool = True) -> Tensor:
            return self.log_probs(logits, prepared.batch, with_entropy=False).log_probs

        with torch.no_grad():
            found = self.run(micro_batches, keep, forward_only=True, routing=routing)
        return found or [None] * len(micro_batches)

    def run(
        self,
        micro_batches: Sequence[Packed],
        last_stage: Callable[..., Any],
        *,
        forward_only: bool,
        routing: Mode = "replay",
    ) -> list[Any]:
        """Megatron's schedule over the micro-batches; `last_stage(micro_batch, output)` gives what
        is collected of each.

        `routing`: "replay" where the micro-batches have routed experts to replay, "free" not even
        then, "capture" for `with_old`."""

        def forward(source: Iterator[Packed], model: Any) -> tuple[Tensor, Callable[..., Any]]:
            prepared = next(source)
            mb = prepared.batch
            replay = self._routing
            with (
                replay.around(model, mb, routing, forward_only=forward_only)
                if replay
                else contextlib.nullcontext()
            ):
                logits = model(
                    mb.tokens,
                    mb.positions,
                    None,
                    packed_seq_params=mb.packing,
                    loss_mask=mb.rows,
                    **self._options,
                )
            return logits, lambda out, **kwargs: last_stage(prepared, out, **kwargs)

        passed = sum(p.batch.num_tokens for p in micro_batches)
        self.tokens_forward_only += passed if forward_only else 0
        self.tokens_trained += 0 if forward_only else passed
        models = self._built.ddp
        longest = max(p.batch.num_inputs for p in micro_batches)
        try:
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
        finally:
            if self._routing is not None:
                self._routing.finish()
