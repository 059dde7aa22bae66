"""From this tensor-parallel rank's logits to log-probs; the loss itself is
stages/learn/objective.py."""

from __future__ import annotations

from megatron.core import parallel_state as mpu
from torch import Tensor

from stages.learn.losses import CHUNK_SIZE, TokenLogProbs, compute_log_probs_from_logits
from stages.learn.megatron.packing import PackedMicroBatch


def log_probs_of(
    logits: Tensor,
    batch: PackedMicroBatch,
    *,
    temperature: float,
    vocab_shard: int,
    with_entropy: bool,
    chunk_size: int = CHUNK_SIZE,
    overwrite_logits: bool = False,
) -> TokenLogProbs:
    """The log-probs of the n tokens that this rank predicts. logits: [1, n, words of this TP rank];
    `vocab_shard`: words of a rank with padding, the stride between ranks' first words."""
    split = mpu.get_tensor_model_parallel_world_size() > 1
    return compute_log_probs_from_logits(
        logits.squeeze(0),  # whose gradient is a view, unlike that of logits[0]
        batch.targets if batch.own is None else batch.targets[batch.own],
        temperature=temperature,
        with_entropy=with_entropy,
        group=mpu.get_tensor_model_parallel_group() if split else None,
        vocab_start=mpu.get_tensor_model_parallel_rank() * vocab_shard,
        chunk_size=chunk_size,
        overwrite_logits=overwrite_logits,
    )
