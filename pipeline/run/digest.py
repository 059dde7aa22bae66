"""A fingerprint of what a learner was given: two runs with equal ones trained on the same bits."""

from __future__ import annotations

import hashlib

import numpy as np

from pipeline.core.types import TrainBatch


def batch_digest(batch: TrainBatch) -> str:
    """16 hexadecimal digits over every array of every sample, and over how the batch is cut into
    steps, ranks and micro-batches."""
    digest = hashlib.blake2b(digest_size=8)
    for step in batch.steps:
        digest.update(f"step {step.num_samples} {step.num_loss_tokens}".encode())
        for rank in step.per_rank:
            for micro_batch in rank:
                digest.update(f"micro-batch {len(micro_batch)}".encode())
                for s in micro_batch:
                    digest.update(
                        f"{s.index} {s.group_index} {s.response_length} {s.reward!r} {s.staleness}"
                        f" {s.trajectory} {s.weight!r} {s.norm_length}".encode()
                    )
                    for array in (s.tokens, s.loss_mask, s.rollout_log_probs, s.advantages):
                        digest.update(np.ascontiguousarray(array).tobytes())
                    if s.token_staleness is not None:
                        digest.update(b"staleness" + s.token_staleness.tobytes())
                    if s.teacher_log_probs is not None:
                        digest.update(b"teacher" + s.teacher_log_probs.tobytes())
                    if s.routed_experts is not None:
                        digest.update(
                            f"experts {s.routed_experts.shape}".encode()
                            + np.ascontiguousarray(s.routed_experts).tobytes()
                        )
                    for name, array in sorted((s.multimodal or {}).items()):
                        digest.update(
                            f"{name} {array.dtype} {array.shape}".encode()
                            + np.ascontiguousarray(array).tobytes()
                        )
    return digest.hexdigest()
